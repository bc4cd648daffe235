"""An adapter has factors for every layer and every expert of a sequence of numbers, unless it names its layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

from ....util.text import count, escape
from ..check import Check
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]

_NUMBER = re.compile(r"\.(\d{1,9})(?=\.|$)")
FEWEST = 2
SHOWN = 8
"""Missing numbers that a finding names."""
STACKS = ("block", "blocks", "experts", "h", "layer", "layers")
"""Names of the modules that hold layers or experts."""
ADVICE = "Look whether a shard or a rank was left out when it was saved, or set layers_to_transform if this is meant."


def _run(subject: Subject) -> Iterator[Found]:
    modules = [one.module for one in subject.adapter.factors] if subject.adapter is not None else []
    for place, numbers in _sequences(modules).items():
        missing = max(numbers) + 1 - len(numbers)
        if missing and len(numbers) >= FEWEST and place.rpartition(".")[2] in STACKS:
            has = f"{escape(place)} has factors for numbers up to {max(numbers)}"
            are = f"{count(missing, 'number')} {'is' if missing == 1 else 'are'} missing"
            figures = {"missing": missing, "numbers": len(numbers)}
            yield Found(Status.WARN, f"{has}, but {are}: {_gaps(numbers, missing)}", ADVICE, figures=figures)


def _gaps(numbers: set[int], missing: int) -> str:
    """Return the first missing numbers in words; a key may have a number of nine digits."""
    first = islice((number for number in range(max(numbers)) if number not in numbers), SHOWN)
    more = f", and {missing - SHOWN} more" if missing > SHOWN else ""
    return ", ".join(map(str, first)) + more


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
