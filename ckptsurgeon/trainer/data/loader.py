"""The batches of a split, made by torch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...errors import CheckpointError
from ..system.random_state import preserve_cpu_random_state, seed_cpu_from
from ..system.signals import start_loader, worker_options
from .order import BatchSize, epoch_batches, padding, sorted_batches
from .split import Split

if TYPE_CHECKING:
    from ..tasks._task import Batch, ClipTask
    from .inputs import ClipInputs

__all__ = ["Batches"]

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
