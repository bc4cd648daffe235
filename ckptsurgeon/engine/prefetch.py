"""Fetches, with few requests, all byte ranges of remote files that will be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock

from ..checkpoint.checkpoint import Checkpoint
from ..planning.plan.plan import Plan
from ..storage.read.base import Advance, File
from ..tensors.composition import leaves
from ..tensors.dtypes import reach
from ..tensors.info import TensorInfo
from .inputs import PlanInputs

__all__ = ["fetch_keys", "fetch_tensors", "no_progress", "prefetch"]

Ranges = list[tuple[int, int]]
Parts = Iterable[tuple[Checkpoint, TensorInfo | None]]
Advanced = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Do nothing: the default for ``advance``."""


def prefetch(plan: Plan, inputs: PlanInputs, advance: Advanced = no_progress) -> int:
    """Fetch all parts of remote sources that a plan reads; return the number of bytes fetched.

    ``advance`` is called with (bytes fetched, total bytes).
    """
    return fetch_tensors(_read(plan, inputs), advance)


def fetch_tensors(parts: Parts, advance: Advanced = no_progress) -> int:
    """Fetch the data of all remote tensors in ``parts`` together; return the number of bytes fetched.

    ``parts`` are pairs of a checkpoint and a tensor. ``advance`` is called with (bytes fetched, total bytes).
    """
    wanted = _wanted(parts)
    total = sum(end - begin for _, ranges in wanted for begin, end in ranges)
    came = _FetchCounter(lambda done: advance(done, max(done, total)))
    for file, ranges in wanted:
        file.need(ranges, came.add)
    return came.done


def fetch_keys(checkpoint: Checkpoint, keys: Iterable[str], advance: Advanced = no_progress) -> int:
    """Fetch the tensors with these keys if the checkpoint is remote; return the number of bytes fetched."""
    if not any(file.remote for file in checkpoint.open_files().values()):
        return 0
    return fetch_tensors(((checkpoint, checkpoint[key]) for key in keys), advance)


class _FetchCounter:
    """Counts the bytes that are fetched from all files, and reports the sum after each fetch."""

    def __init__(self, advance: Advance) -> None:
        self.done = 0
        self._told = advance
        self._lock = Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            self._told(self.done)


def _wanted(parts: Parts) -> list[tuple[File, Ranges]]:
    """Return (file, byte ranges to read from it, without duplicates) for each remote file."""
    found: dict[int, tuple[File, dict[tuple[int, int], None]]] = {}
    for source, info in parts:
        for leaf in leaves(info) if info is not None else ():
            if leaf.storage is None:
                continue
            file = source.file(leaf)
            if file.remote:
                found.setdefault(id(file), (file, {}))[1][_range(leaf)] = None
    return [(file, list(ranges)) for file, ranges in found.values()]


def _read(plan: Plan, inputs: PlanInputs) -> Iterator[tuple[Checkpoint, TensorInfo | None]]:
    """Yield the tensors that a plan reads, with their checkpoints."""
    keeper = plan.keeper(inputs.sources)
    for step in plan.steps:
        for one in step.inputs:
            yield inputs.sources[one.source], inputs.sources[one.source].get(one.key)
        if keeper is not None and step.overlays:
            yield keeper, keeper.get(step.key)
    for pair in plan.equal:
        source = inputs.sources[pair.source]
        yield from ((source, source.get(key)) for key in (pair.first, pair.second))


def _range(info: TensorInfo) -> tuple[int, int]:
    """Return (begin, end) of the bytes to read for a tensor: of its whole storage if the storage has a checksum."""
    storage = info.storage
    assert storage is not None
    if storage.has_checksum:
        return storage.offset, storage.offset + storage.nbytes
    begin = storage.offset + info.offset
    return begin, begin + (reach(info.shape, info.stride) * info.itemsize if info.stride else info.nbytes)
