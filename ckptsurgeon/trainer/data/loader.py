"""The batches of a split: their clips and order, by lengths, seed and epoch; torch's DataLoader makes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...errors import CheckpointError
from ..system.random_state import preserve_cpu_random_state, seed_cpu_from
from ..system.signals import start_loader, worker_options
from .split import Split

if TYPE_CHECKING:
    from ..tasks._task import Batch, ClipTask
    from .inputs import ClipInputs

__all__ = ["BatchSize", "Batches", "epoch_batches", "padding", "sorted_batches"]


AHEAD = 4
"""How many batches each worker prepares in advance."""

Key = tuple[int, int, int]
"""The seed, epoch and index of an example; they determine its content and its random numbers."""


class Batches:
    """The batches of a split: shuffled by seed and epoch, or, if ``shuffled`` is false, the longest clips first.

    If ``inputs`` has a cache, the cache is filled before the first batch. The random numbers for an example depend only
    on its seed, epoch and index, not on the process that makes the example. Making an example does not change the
    random states of the process. Clips are augmented only if ``shuffled`` is true.
    """

    def __init__(
        self, task: ClipTask, split: Split, *, size: BatchSize, workers: int = 0, shuffled: bool = True,
        inputs: ClipInputs | None = None,
    ) -> None:  # fmt: skip
        self.split = split
        self._size, self._shuffled, self._inputs = size, shuffled, inputs
        self._orders: dict[tuple[int, int], list[list[int]]] = {}
        self._places = _BatchSampler()
        self._dataset = _BatchDataset(task, split, augmented=shuffled)
        self._loader = torch.utils.data.DataLoader(
            self._dataset,
            batch_sampler=self._places,
            collate_fn=_identity,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
            **worker_options(workers),
        )

    def size(self, epoch: int, seed: int = 0) -> int:
        """Return the number of batches in an epoch; if the batch size is in seconds, this depends on epoch and seed."""
        return len(self.order(seed, epoch))

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the indices of the clips in each batch of an epoch."""
        if (seed, epoch) not in self._orders:
            lengths = self.split.lengths
            self._orders = {
                (seed, epoch): epoch_batches(lengths, self._size, seed=seed, epoch=epoch)
                if self._shuffled
                else sorted_batches(lengths, self._size)
            }
        return self._orders[seed, epoch]

    def longest(self, *, rank: int = 0, of: int = 1) -> Batch:
        """Return a batch of the longest clips; no batch of an epoch is longer than this batch.

        If ``of`` processes share each batch, only the clips of process ``rank`` are returned. The batch is made in the
        calling process, not in a worker, and with other random numbers than the batches of the run.
        """
        self.fill()
        places = sorted_batches(self.split.lengths, self._size)[0][rank::of] or [0]
        found = self._dataset.__getitems__([(0, 0, place) for place in places])
        if isinstance(found, CheckpointError):
            raise found
        return found

    def padding(self, seed: int = 0, epoch: int = 0) -> float:
        """Return the share of padding in an epoch's batches, from 0 to 1."""
        return padding(self.split.lengths, self.order(seed, epoch))

    def read(
        self, seed: int = 0, epoch: int = 0, start: int = 0, *, rank: int = 0, of: int = 1,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the batches of an epoch from the index ``start`` on, or only the batches with the indices ``numbers``.

        If ``of`` processes share each batch, process ``rank`` gets every ``of``-th clip, from the ``rank``-th on.
        Raises the errors of reading a clip, such as SourceError.
        """
        self.fill()
        order = self.order(seed, epoch)
        chosen = order[start:] if numbers is None else [order[number] for number in numbers]
        parts = [(batch[rank::of], batch[0]) for batch in chosen]
        self._places.batches = [[(seed, epoch, at) for at in part or [first]] for part, first in parts]
        for batch, (part, _) in zip(start_loader(self._loader), parts, strict=True):
            if isinstance(batch, CheckpointError):
                try:
                    raise batch
                finally:
                    # The error refers to this frame, and the variable to the error. This reference cycle would keep
                    # worker processes alive for seconds.
                    del batch
            yield batch if part else replace(batch, seconds=0.0, idle=True)

    def close(self) -> None:
        """End the worker processes now; otherwise they may run on for seconds if the loader is in a reference cycle."""
        under_way = getattr(self._loader, "_iterator", None)
        if under_way is not None and self._loader.num_workers:
            under_way._shutdown_workers()
            self._loader._iterator = None

    def fill(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Compute the features that are not in the cache, and return the number of clips with new features.

        ``progress`` gets the number of clips that are done and the number of all clips.
        """
        inputs, self._inputs = self._inputs, None
        return inputs.prepare(self.split.clips, progress) if inputs is not None else 0


class _BatchSampler(torch.utils.data.Sampler[list[Key]]):
    """Gives the DataLoader the keys (seed, epoch, index) of the clips in each batch.

    ``batches`` is replaced for each epoch, so that all epochs can use the same DataLoader and workers.
    """

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _BatchDataset(torch.utils.data.Dataset[Any]):
    """The dataset of the DataLoader, which makes a whole batch from the keys (seed, epoch, index) of its clips.

    An error is returned in place of a batch: the parent process raises it unchanged. DataLoader would wrap it.
    """

    def __init__(self, task: ClipTask, split: Split, *, augmented: bool) -> None:
        self._task, self._clips, self._augmented = task, split.clips, augmented

    def __getitems__(self, keys: Sequence[Key]) -> Batch | CheckpointError:
        try:
            with preserve_cpu_random_state():
                examples = [self._example(key) for key in keys]
                seed_cpu_from(*keys[0], "batch")
                return self._task.collate(examples)
        except CheckpointError as error:
            return error

    def _example(self, key: Key) -> Mapping[str, Any]:
        seed_cpu_from(*key)
        return self._task.example(replace(self._clips[key[2]], augmented=self._augmented))


def _identity(batch: Any) -> Any:
    return batch


T = TypeVar("T")
POOL, POOL_BY_SECONDS = 32, 64
"""The clips of this many random batches are sorted by length together, and then cut into batches of similar length.

If all clips were sorted together, every epoch would have the same batches. The second constant is for batches whose
size is in seconds.
"""


@dataclass(frozen=True)
class BatchSize:
    """The size of a batch: ``clips`` clips, or, if ``seconds`` is not None, this number of seconds after padding.

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
        """Cut the clip indices ``places``, which are sorted by length (up or down), into batches of this size.

        A size in seconds counts padded clips: the number of clips times the longest length.
        """
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
