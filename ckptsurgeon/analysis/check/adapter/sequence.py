"""An adapter has factors for every layer and every expert of a sequence of numbers, unless it names its layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import Check
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]

_NUMBER = re.compile(r"\.(\d{1,9})(?=\.|$)")
FEWEST = 2
STACKS = ("block", "blocks", "experts", "h", "layer", "layers")
"""Names of the modules that hold layers or experts."""
TODO = "Look whether a shard or a rank was left out when it was saved, or set layers_to_transform if this is meant."


def _run(subject: Subject) -> Iterator[Found]:
    modules = [one.module for one in subject.adapter.factors] if subject.adapter is not None else []
    for place, numbers in _sequences(modules).items():
        missing = sorted(set(range(max(numbers) + 1)) - numbers)
        if missing and len(numbers) >= FEWEST and place.rpartition(".")[2] in STACKS:
            named = listing([str(number) for number in missing], 8)
            has = f"{escape(place)} has factors for numbers up to {max(numbers)}"
            said = f"{has}, but {count(len(missing), 'number')} {'is' if len(missing) == 1 else 'are'} missing: {named}"
            yield Found(Status.WARN, said, TODO, figures={"missing": len(missing), "numbers": len(numbers)})


def _sequences(modules: list[str]) -> dict[str, set[int]]:
    """Return the numbers after each prefix of a module's name."""
    found: dict[str, set[int]] = defaultdict(set)
    for module in modules:
        for part in _NUMBER.finditer(module):
            found[module[: part.start()]].add(int(part[1]))
    return found


def _against(subject: Subject) -> str:
    if why := no_adapter(subject):
        return why
    chosen = subject.adapter is not None and subject.adapter.is_chosen
    return "adapter_config.json names its layers" if chosen else ""


CHECK = Check("adapter-sequence", "no layer or expert lacks factors", _run, _against)
