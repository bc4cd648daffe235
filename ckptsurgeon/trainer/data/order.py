"""Divides clips into ordered batches, as a pure function of the clips' lengths, the seed and the epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["BatchSize", "epoch_batches", "padding", "sorted_batches"]

T = TypeVar("T")
POOL, POOL_BY_SECONDS = 32, 64
"""The clips of this many random batches are sorted by length together, and then cut into batches of similar length.

If all clips were sorted together, every epoch would have the same batches. The second constant is for batches whose
size is in seconds.
"""


@dataclass(frozen=True)
class BatchSize:
    """The size of a batch: ``clips`` clips, or, if ``seconds`` is not None, this number of seconds.

    If the size is in seconds, a batch has as many clips as fit when each is padded to the longest, but at least one.
    """

    clips: int = 1
    seconds: float | None = None

    def pools(self, places: Sequence[int], lengths: Sequence[float]) -> Iterator[list[int]]:
        """Divide the clip indices ``places`` into lists; each list has the clips of some dozens of batches.

        The order of the indices stays the same. The caller sorts the clips of each list by length and cuts them into
        batches. The last list may be shorter. ``lengths`` are the lengths of all clips in seconds.
        """
        if self.seconds is None:
            size = POOL * self.clips
            yield from (list(places[begin : begin + size]) for begin in range(0, len(places), size))
            return
        pool, room = [], POOL_BY_SECONDS * self.seconds
        for place in places:
            pool.append(place)
            room -= lengths[place]
            if room <= 0:
                yield pool
                pool, room = [], POOL_BY_SECONDS * self.seconds
        if pool:
            yield pool

    def cut(self, places: Sequence[int], lengths: Sequence[float]) -> list[list[int]]:
        """Cut the clip indices ``places``, which are sorted by length (up or down), into batches of this size."""
        if self.seconds is None:
            return [list(places[begin : begin + self.clips]) for begin in range(0, len(places), self.clips)]
        batches: list[list[int]] = []
        longest = 0.0
        for place in places:
            both = max(longest, lengths[place])
            if batches and (len(batches[-1]) + 1) * both <= self.seconds:
                batches[-1].append(place)
                longest = both
            else:
                batches.append([place])
                longest = lengths[place]
        return batches


def epoch_batches(lengths: Sequence[float], size: BatchSize, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the indices of the clips in each batch of an epoch; each clip is in one batch.

    The order depends only on the arguments, and is the same in every version of Python. It comes from the function
    ``random()`` of a separate generator, because Python does not promise that ``shuffle()`` stays the same.
    """
    chance = random.Random(f"{seed} {epoch}")
    batches = []
    for pool in size.pools(_shuffled(range(len(lengths)), chance), lengths):
        batches += size.cut(sorted(pool, key=lengths.__getitem__), lengths)
    return _shuffled(batches, chance)


def sorted_batches(lengths: Sequence[float], size: BatchSize) -> list[list[int]]:
    """Return the clip indices in each batch of an evaluation, the longest clips first.

    If a batch does not fit into memory, the evaluation then fails immediately.
    """
    return size.cut(sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)), lengths)


def padding(lengths: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding, from 0 to 1, in batches whose clips are padded to the longest clip of the batch.

    ``lengths`` are the lengths of all clips, ``batches`` the clip indices in each batch.
    """
    room = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    return 1 - sum(lengths[place] for batch in batches for place in batch) / room if room else 0.0


def _shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    keys = [chance.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
