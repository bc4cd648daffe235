"""Says of all that a plan will read where it lies, so that what is far away is fetched in few requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from ..checkpoint import Checkpoint
from ..composition import leaves
from ..errors import FormatError
from ..plan import Plan
from ..sources import Advance, File
from ..tensors import TensorInfo, reach
from .run import Inputs

__all__ = ["announce", "keeping"]

Ranges = list[tuple[int, int]]
Parts = Iterator[tuple[Checkpoint, TensorInfo | None]]


def announce(plan: Plan, inputs: Inputs, advance: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Fetch what the steps of a plan read of remote sources; returns the bytes that came.

    ``advance`` is told (bytes that came, bytes that are wanted in all).
    """
    wanted = _wanted(plan, inputs)
    total = sum(end - begin for _, ranges in wanted for begin, end in ranges)
    came = _Counter(lambda done: advance(done, max(done, total)))
    for file, ranges in wanted:
        file.need(ranges, came.add)
    return came.done


@contextmanager
def keeping(inputs: Inputs) -> Iterator[None]:
    """Let what is fetched in the block outlast it where it fails, so that the next run goes on from there.

    Except where bytes are not what they should be: those are fetched anew.
    """
    _keep(inputs, True)
    try:
        yield
    except FormatError:
        _keep(inputs, False)
        raise
    _keep(inputs, False)


def _keep(inputs: Inputs, wanted: bool) -> None:
    for checkpoint in _checkpoints(inputs):
        for file in checkpoint.open_files().values():
            file.keep(wanted)


def _checkpoints(inputs: Inputs) -> list[Checkpoint]:
    return [*inputs.sources, *([inputs.keeper] if inputs.keeper is not None else [])]


class _Counter:
    """Bytes that came, of all files."""

    def __init__(self, told: Advance) -> None:
        self.done = 0
        self._told = told
        self._lock = Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            self._told(self.done)


def _wanted(plan: Plan, inputs: Inputs) -> list[tuple[File, Ranges]]:
    """Return of each remote file the ranges that will be read, each once."""
    if not any(file.remote for checkpoint in _checkpoints(inputs) for file in checkpoint.open_files().values()):
        return []
    found: dict[int, tuple[File, dict[tuple[int, int], None]]] = {}
    for source, info in _read(plan, inputs):
        for leaf in leaves(info) if info is not None else ():
            if leaf.storage is None:
                continue
            file = source.file(leaf)
            if file.remote:
                found.setdefault(id(file), (file, {}))[1][_range(leaf)] = None
    return [(file, list(ranges)) for file, ranges in found.values()]


def _read(plan: Plan, inputs: Inputs) -> Parts:
    """Yield the tensors that a plan reads, with the checkpoints they are of."""
    for step in plan.steps:
        for one in step.inputs:
            yield inputs.sources[one.source], inputs.sources[one.source].get(one.key)
        if inputs.keeper is not None and step.overlays:
            yield inputs.keeper, inputs.keeper.get(step.key)
    for pair in plan.equal:
        source = inputs.sources[pair.source]
        yield from ((source, source.get(key)) for key in (pair.first, pair.second))


def _range(info: TensorInfo) -> tuple[int, int]:
    """Return what is read for a stored tensor: its whole record where that has a checksum, else what it reaches."""
    storage = info.storage
    assert storage is not None
    if storage.has_checksum:
        return storage.offset, storage.offset + storage.nbytes
    begin = storage.offset + info.offset
    return begin, begin + (reach(info.shape, info.stride) * info.itemsize if info.stride else info.nbytes)
