"""Sources of batches. The order of the batches depends only on seed and epoch; reading can start at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import ConfigError
from ..parallel.ranks import Ranks
from ..system.random_state import preserve_random_state
from .loader import Batches

if TYPE_CHECKING:
    from ..tasks._task import Batch

__all__ = ["BatchSource", "BatchStream", "OneBatch", "Position", "RankBatches", "first_batch", "share_batches"]

Position = tuple[int, int]
"""(epoch, number of used batches of this epoch)."""


class BatchSource(Protocol):
    """The batches of one split.

    A source uses its own random generators, never torch's global one: a resumed run must see the same batches as an
    uninterrupted one (https://github.com/huggingface/transformers/pull/46628).
    """

    def size(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        ...

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch in its order, from the index ``start`` on."""
        ...


class BatchStream:
    """An iterator over the batches of a source, epoch after epoch.

    ``position``, which checkpoints store, is (current epoch, number of used batches of this epoch).
    """

    def __init__(self, source: BatchSource, seed: int, position: Position = (0, 0)) -> None:
        self._source, self._seed = source, seed
        self.position = position
        self._batches: Iterator[Any] | None = None

    def seek(self, position: Position) -> None:
        """Continue from a position: (epoch, number of used batches of this epoch)."""
        self.position, self._batches = position, None

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        epoch, used = self.position
        if used >= _epoch_size(self._source, self._seed, epoch):
            epoch, used, self._batches = epoch + 1, 0, None
        batch: Batch | None
        # torch's DataLoader draws from the global generator when an epoch begins. A resumed run begins one epoch more
        # than an uninterrupted run, so the states of the generators are restored.
        if self._batches is None:
            with preserve_random_state():
                self._batches = iter(self._source.read(self._seed, epoch, used))
                batch = next(self._batches, None)
        else:
            batch = next(self._batches, None)
        if batch is None:
            raise _missing_batch(epoch, used, _epoch_size(self._source, self._seed, epoch))
        self.position = (epoch, used + 1)
        return batch


def first_batch(source: BatchSource, seed: int) -> Batch:
    """Return the first batch of the first epoch."""
    with preserve_random_state():
        batch = next(iter(source.read(seed, 0)), None)
    if batch is None:
        raise _missing_batch(0, 0, source.size(0))
    return batch


def _epoch_size(source: BatchSource, seed: int, epoch: int) -> int:
    """Return the number of batches in an epoch of a source; with a batch size in seconds, this depends on the seed."""
    whole = source.source if isinstance(source, RankBatches) else source
    return whole.size(epoch, seed) if isinstance(whole, Batches) else whole.size(epoch)


def _missing_batch(epoch: int, used: int, size: int) -> ConfigError:
    return ConfigError(
        f"the split train has no batch {used} in epoch {epoch}, but size({epoch}) is {size}.",
        hint="size(epoch) and read(seed, epoch, start) of the task's source must agree, and size must be 1 or more.",
    )


class OneBatch:
    """A source whose epochs all consist of the same single batch, for --overfit-one-batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def size(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return 1

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the one batch of an epoch; nothing if ``start`` is not 0."""
        if start == 0:
            yield self._batch


def share_batches(source: BatchSource, ranks: Ranks) -> BatchSource:
    """Return a source that reads only this rank's part of each batch; with one rank, the source itself."""
    return source if ranks.size == 1 else RankBatches(source, ranks)


def whole_batches(source: BatchSource, ranks: Ranks) -> Iterator[tuple[int, Batch]]:
    """Yield (index, batch) for the batches of the first epoch that this rank evaluates.

    The ranks take turns: each whole batch goes to one rank. ``index`` is the position of the batch in the epoch.
    """
    if isinstance(source, Batches):  # it makes no other batches
        numbers = range(ranks.rank, len(source.order(0, 0)), ranks.size)
        yield from zip(numbers, source.read(0, 0, numbers=numbers), strict=True)
        return
    for number, batch in enumerate(source.read(0, 0)):
        if number % ranks.size == ranks.rank:
            yield number, batch


class RankBatches:
    """The part of each batch of ``source`` that one of n ranks gets: every n-th example, from the index ``rank`` on.

    A batch is sorted by length, so every rank has about the same work. If a batch has fewer examples than there are
    ranks, the last ranks run the first example of the batch, and ignore the result. All ranks must run an example,
    because every rank must take part in the all-reduce.
    """

    def __init__(self, source: BatchSource, ranks: Ranks) -> None:
        self.source, self._rank, self._size = source, ranks.rank, ranks.size

    def size(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return self.source.size(epoch)

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's parts of the batches of an epoch, from the index ``start`` on."""
        if isinstance(self.source, Batches):  # it makes no other examples
            yield from self.source.read(seed, epoch, start, rank=self._rank, of=self._size)
            return
        for batch in self.source.read(seed, epoch, start):
            yield batch.strided(self._rank, self._size)
