"""The batches of a split: their order, and the DataLoader that makes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...errors import CheckpointError
from ..system.random_state import preserve_cpu_random_state, seed_cpu_from
from ..system.signals import ignore_stop_signals, start_loader
from .split import Split

if TYPE_CHECKING:
    from ..tasks._task import Batch, ClipTask
    from .inputs import ClipInputs

__all__ = ["Batches", "epoch_batches", "padding", "sorted_batches"]

AHEAD = 4
"""Batches that each worker prepares in advance."""

Key = tuple[int, int, int]
"""The seed, epoch and index of an example, which determine its content and its random numbers."""


class Batches:
    """The batches of a split: shuffled by seed and epoch, or, if not ``shuffled``, the longest clips first.

    If ``inputs`` has a cache, it is filled before the first batch. Random numbers that are drawn for an example
    depend only on its seed, epoch and index, not on the process that makes it; the generators are restored.
    """

    def __init__(
        self, task: ClipTask, split: Split, *, batch_size: int, workers: int = 0, shuffled: bool = True,
        inputs: ClipInputs | None = None,
    ) -> None:  # fmt: skip
        self.split = split
        self._batch_size, self._shuffled, self._inputs = batch_size, shuffled, inputs
        self._places = _BatchSampler()
        self._loader = torch.utils.data.DataLoader(
            _BatchDataset(task, split),
            batch_sampler=self._places,
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def size(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return -(-len(self.split.clips) // self._batch_size)

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the indices of the clips in each batch of an epoch."""
        if self._shuffled:
            return epoch_batches(self.split.lengths, self._batch_size, seed=seed, epoch=epoch)
        return sorted_batches(self.split.lengths, self._batch_size)

    def padding(self, seed: int = 0, epoch: int = 0) -> float:
        """Return the share of padding in an epoch's batches."""
        return padding(self.split.lengths, self.order(seed, epoch))

    def read(
        self, seed: int = 0, epoch: int = 0, start: int = 0, *, rank: int = 0, of: int = 1
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the batches of an epoch from the ``start``-th on; with several processes, the parts of ``rank``.

        Raises what reading a clip raises.
        """
        self.fill()
        parts = [(batch[rank::of], batch[0]) for batch in self.order(seed, epoch)[start:]]
        self._places.batches = [[(seed, epoch, at) for at in part or [first]] for part, first in parts]
        for batch, (part, _) in zip(start_loader(self._loader), parts, strict=True):
            if isinstance(batch, CheckpointError):
                try:
                    raise batch
                finally:
                    # An error in its own frame is a reference cycle, which keeps worker processes alive for seconds.
                    del batch
            yield batch if part else replace(batch, seconds=0.0, idle=True)

    def close(self) -> None:
        """End the workers now; otherwise they live for seconds more if the loader is part of a reference cycle."""
        under_way = getattr(self._loader, "_iterator", None)
        if under_way is not None and self._loader.num_workers:
            under_way._shutdown_workers()
            self._loader._iterator = None

    def fill(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Compute the features that are not in the cache, and return for how many clips.

        ``progress`` gets the number of clips that are done, and of all clips.
        """
        inputs, self._inputs = self._inputs, None
        return inputs.prepare(self.split.clips, progress) if inputs is not None else 0


class _BatchSampler(torch.utils.data.Sampler[list[Key]]):
    """The batch sampler. Its batches change each epoch while the loader, and with it the workers, stay."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _BatchDataset(torch.utils.data.Dataset[Any]):
    """The dataset of the loader. Errors are returned, so that the parent raises them with their own class."""

    def __init__(self, task: ClipTask, split: Split) -> None:
        self._task, self._clips = task, split.clips

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
        return self._task.example(self._clips[key[2]])


def _identity(batch: Any) -> Any:
    return batch


T = TypeVar("T")
POOL = 32
"""Clips for so many batches are chosen at random and sorted by length, so that batches differ in every epoch."""


def epoch_batches(lengths: Sequence[float], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the indices of the clips in each batch of an epoch; each clip is in one batch, the last may be smaller.

    The order depends on the arguments alone, and is the same with every Python version: it comes from a generator of
    its own, and only from its method ``random()``, since Python promises no stable sequence for ``shuffle()``.
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
    """Return batches of all clips for evaluation, the longest first: what does not fit into memory fails at once."""
    return _cut(sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)), batch_size)


def padding(lengths: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding in batches that are each padded to their longest clip."""
    room = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    return 1 - sum(lengths[place] for batch in batches for place in batch) / room if room else 0.0


def _cut(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[begin : begin + size]) for begin in range(0, len(places), size)]


def _shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    keys = [chance.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]
