"""Checks that an adapter has factors for every layer and every expert, unless its configuration selects layers."""

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
"""A list of layers or experts is checked only if at least this many of its indices have factors."""
SHOWN = 8
"""The largest number of missing indices that a finding lists."""
STACKS = ("block", "blocks", "experts", "h", "layer", "layers")
"""The names that lists of layers or experts (``nn.ModuleList``) usually have."""
ADVICE = (
    "Check whether a shard, or the factors of one process, were lost during saving; if layers have no factors on "
    "purpose, set layers_to_transform."
)


def _run(subject: Subject) -> Iterator[Found]:
    modules = [one.module for one in subject.adapter.factors] if subject.adapter is not None else []
    for place, numbers in _sequences(modules).items():
        missing = max(numbers) + 1 - len(numbers)
        if missing and len(numbers) >= FEWEST and place.rpartition(".")[2] in STACKS:
            has = f"{escape(place)} has factors for indices up to {max(numbers)}"
            are = f"{count(missing, 'index', 'indices')} {'is' if missing == 1 else 'are'} missing"
            figures = {"missing": missing, "numbers": len(numbers)}
            yield Found(Status.WARN, f"{has}, but {are}: {_gaps(numbers, missing)}", ADVICE, figures=figures)


def _gaps(numbers: set[int], missing: int) -> str:
    """Return a text such as "3, 5, 7, and 2 more": the first ``SHOWN`` missing indices, and the number of the others.

    ``numbers`` are the indices that exist; ``missing`` is the number of missing indices, which may be millions.
    """
    first = islice((number for number in range(max(numbers)) if number not in numbers), SHOWN)
    more = f", and {missing - SHOWN} more" if missing > SHOWN else ""
    return ", ".join(map(str, first)) + more


def _sequences(modules: list[str]) -> dict[str, set[int]]:
    """Return a mapping from each list of modules, such as ``model.layers``, to the indices that occur in ``modules``.

    ``modules`` are paths of modules, such as ``model.layers.0.self_attn.q_proj``.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for module in modules:
        for part in _NUMBER.finditer(module):
            found[module[: part.start()]].add(int(part[1]))
    return found


def _against(subject: Subject) -> str:
    if why := no_adapter(subject):
        return why
    chosen = subject.adapter is not None and subject.adapter.is_chosen
    return "adapter_config.json selects layers (layers_to_transform)" if chosen else ""


CHECK = Check("adapter-sequence", "no layer or expert lacks factors", _run, _against)
