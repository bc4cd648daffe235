"""In which order clips are seen: batches of clips of like length, their order a pure function of (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["epoch_batches", "padding", "sorted_batches"]

T = TypeVar("T")
POOL = 32
"""Batches that are filled from one random part of the clips, sorted by length: company changes every epoch."""


def epoch_batches(lengths: Sequence[float], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the places of the clips of each batch of an epoch; each clip is in one batch, the last may be smaller.

    No random state but its own is touched, and the same arguments give the same order with every version of Python:
    of ``random`` only ``random()`` promises that.
    """
    chance = random.Random(f"{seed} {epoch}")
    shuffled = _shuffled(range(len(lengths)), chance)
    size = POOL * batch_size
    batches = []
    for begin in range(0, len(shuffled), size):
        pool = sorted(shuffled[begin : begin + size], key=lengths.__getitem__)
        batches += _cut(pool, batch_size)
    return _shuffled(batches, chance)


def sorted_batches(lengths: Sequence[float], batch_size: int) -> list[list[int]]:
    """Return batches of all clips, the longest first (what does not fit into memory fails at once): to evaluate on."""
    return _cut(sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)), batch_size)


def padding(lengths: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding in some batches, each padded to its longest."""
    room = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    return 1 - sum(lengths[place] for batch in batches for place in batch) / room if room else 0.0


def _cut(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[begin : begin + size]) for begin in range(0, len(places), size)]


def _shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    keys = [chance.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
