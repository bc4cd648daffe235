"""Each process's part of every batch, so that all of them together see what one would."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.loader import Batches
from ..job.source import Source
from ..tasks._task import Batch
from .ranks import Ranks

__all__ = ["RankBatches", "share_batches"]


def share_batches(source: Source, ranks: Ranks) -> Source:
    """Return a source of which each process reads its part."""
    return source if ranks.size == 1 else RankBatches(source, ranks)


class RankBatches:
    """Every ``size``-th example of each batch, from the ``rank``-th on.

    A batch is sorted by length, so that each process has as much to do. Where one has fewer examples than there are
    processes, the last ones stand idle: they work on its first example, of which nothing counts, since all have to take
    part in each step.
    """

    def __init__(self, source: Source, ranks: Ranks) -> None:
        self._source, self._rank, self._size = source, ranks.rank, ranks.size

    def size(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return self._source.size(epoch)

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the parts of the batches of an epoch, from the ``start``-th on."""
        if isinstance(self._source, Batches):  # which loads no other than these
            yield from self._source.read(seed, epoch, start, rank=self._rank, of=self._size)
            return
        for batch in self._source.read(seed, epoch, start):
            yield batch.strided(self._rank, self._size)
