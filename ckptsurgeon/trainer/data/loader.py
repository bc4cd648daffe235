"""Batches of a split: in which order, made by worker processes or by this one."""

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
    from ..tasks._task import Batch, Task
    from .inputs import Inputs

__all__ = ["Batches", "epoch_batches", "padding", "sorted_batches"]

AHEAD = 4
"""Batches that each worker has ready."""

Key = tuple[int, int, int]
"""The seed, the epoch and the place of an example: what it is made of, and what it draws follows from."""


class Batches:
    """The batches of a split. ``shuffled``: in an order that is a function of seed and epoch; else the longest first.

    ``inputs`` is filled before the first batch, where it has a cache. What an example draws from the global generators
    follows from seed, epoch and place, whoever makes it; they are left as they were.
    """

    def __init__(
        self, task: Task, split: Split, *, batch_size: int, workers: int = 0, shuffled: bool = True,
        inputs: Inputs | None = None,
    ) -> None:  # fmt: skip
        self.split = split
        self._batch_size, self._shuffled, self._inputs = batch_size, shuffled, inputs
        self._places = _Places()
        self._loader = torch.utils.data.DataLoader(
            _Made(task, split),
            batch_sampler=self._places,
            collate_fn=_as_it_is,
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
        """Return the places of the clips in each batch of an epoch."""
        if self._shuffled:
            return epoch_batches(self.split.lengths, self._batch_size, seed=seed, epoch=epoch)
        return sorted_batches(self.split.lengths, self._batch_size)

    def padding(self, seed: int = 0, epoch: int = 0) -> float:
        """Return the share of padding in an epoch's batches."""
        return padding(self.split.lengths, self.order(seed, epoch))

    def read(
        self, seed: int = 0, epoch: int = 0, start: int = 0, *, rank: int = 0, of: int = 1
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the batches of an epoch from the ``start``-th on, or of each the part of one of several processes.

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
                    del batch  # an error that its own frame holds is a circle, in which workers take seconds to end
            yield batch if part else replace(batch, seconds=0.0, idle=True)

    def close(self) -> None:
        """End the workers now: those of a loader that lies in a circle of references take seconds to end."""
        under_way = getattr(self._loader, "_iterator", None)
        if under_way is not None and self._loader.num_workers:
            under_way._shutdown_workers()
            self._loader._iterator = None

    def fill(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Compute what the cache lacks of these clips; returns of how many. ``progress``: clips done, of all."""
        inputs, self._inputs = self._inputs, None
        return inputs.prepare(self.split.clips, progress) if inputs is not None else 0


class _Places(torch.utils.data.Sampler[list[Key]]):
    """What the loader is to load next: another list each epoch, so that its workers are kept."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Made(torch.utils.data.Dataset[Any]):
    """Batches of examples; an error is given back as one, so that it is raised where it can be caught."""

    def __init__(self, task: Task, split: Split) -> None:
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


def _as_it_is(batch: Any) -> Any:
    return batch


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
