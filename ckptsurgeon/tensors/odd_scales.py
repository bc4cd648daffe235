"""Collects the names of quantised tensors with scales or zero points that no method writes, and makes notes on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ..util.text import count, escape, listing, natural_key

__all__ = ["HUGE", "NEGATIVE", "NO_OFFSET", "ZERO", "OddScales", "odd_scale_notes"]

ZERO, NEGATIVE, HUGE, NO_OFFSET = "zero", "negative", "huge", "no offset"
"""The kinds of odd scales: 0, negative, too large. The last kind is zero points or biases that are all 0."""
SAID = {
    ZERO: "scales of 0 for codes that are not zero, so that these weights become 0",
    HUGE: "scales that make weights larger than 10,000: perhaps they are inverse scales, or those of another layer",
    NO_OFFSET: "zero points or biases that are all 0, so that none of these weights is negative",
    NEGATIVE: "negative scales, which its encoding does not have, so that these weights change their sign",
}
SHOWN = 3


class OddScales:
    """The names of quantised tensors with odd scales, by kind; several threads may call ``add`` at once."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {kind: {} for kind in SAID}

    def add(self, kind: str, name: str) -> None:
        """Record that the tensor ``name`` has an odd scale of this kind."""
        self.names[kind][name] = None

    def __bool__(self) -> bool:
        return any(self.names.values())

    def of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return {kind of odd scales: names of tensors}, only for the tensors in ``names``."""
        some = set(names)
        return {kind: sorted(some & own.keys(), key=natural_key) for kind, own in self.names.items()}

    def notes(self, path: str) -> tuple[str, ...]:
        """Return notes on all recorded tensors; ``path`` is the path of their checkpoint."""
        return tuple(odd_scale_notes([{path: {kind: [*names] for kind, names in self.names.items()}}]))


Found: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""The names of quantised tensors with odd scales, by the path of their checkpoint and by kind."""


def odd_scale_notes(found: Iterable[Found]) -> Iterator[str]:
    """Yield a note for each checkpoint and each kind of odd scales in it.

    The names of one checkpoint may be spread over several items of ``found``.
    """
    every = list(found)
    for path in dict.fromkeys(path for one in every for path in one):
        for kind, said in SAID.items():
            names = {name for one in every for name in one.get(path, {}).get(kind, ())}
            if names:
                have = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
                yield f"{escape(path)}: {have} {said}: {listing(sorted(names, key=natural_key), SHOWN)}"
