"""Finds the one change of leading segments that gives most of a state dict the names of another, ``backbone.`` off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .fitting import fits
from .units import Unit

__all__ = ["moved"]

MANY = 8
"""Fewer tensors under other leading segments are no evidence."""
DEEPEST = 4
"""How many leading segments may change; a wrapper in a wrapper has two."""

Moves = Mapping[Unit, Unit]


def moved(first: Sequence[Unit], second: Sequence[Unit]) -> Moves:
    """Return the units that are the same but for the beginning of their paths, which is one for all of them.

    That is at least half of the smaller side's tensors, and twice as many as any change that says otherwise.
    """
    fewer = min(sum(len(unit.keys) for unit in units) for units in (first, second))
    there = {unit.path: unit for unit in second}
    changes = [
        _moves(first, there, old, new)
        for old in _beginnings(first, fewer / 4)
        for new in _beginnings(second, fewer / 4)
        if old != new
    ]
    best = max(changes, key=_tensors, default={})
    if _tensors(best) < max(MANY, fewer / 2):
        return {}
    against = max(_tensors(_against(other, best)) for other in changes)
    return best if 2 * against < _tensors(best) else {}


def _beginnings(units: Sequence[Unit], least: float) -> list[str]:
    """Return the leading segments of many tensors, the shortest first; '' are those of all."""
    tensors: Counter[str] = Counter()
    for unit in units:
        parts = unit.path.split(".")
        for depth in range(min(len(parts), DEEPEST) + 1):
            tensors[".".join(parts[:depth])] += len(unit.keys)
    return [path for path, number in tensors.items() if number >= least]


def _moves(first: Sequence[Unit], there: Mapping[str, Unit], old: str, new: str) -> Moves:
    found: dict[Unit, Unit] = {}
    for unit in first:
        if not old or unit.path == old or unit.path.startswith(f"{old}."):
            other = there.get(f"{new}.{unit.path[len(old) :].removeprefix('.')}".strip("."))
            if other is not None and fits(unit, other):
                found[unit] = other
    return found


def _against(other: Moves, best: Moves) -> Moves:
    """Return what of another change contradicts the best one."""
    taken = {b: a for a, b in best.items()}
    return {a: b for a, b in other.items() if best.get(a, b) is not b or taken.get(b, a) is not a}


def _tensors(moves: Moves) -> int:
    return sum(len(unit.keys) for unit in moves)
