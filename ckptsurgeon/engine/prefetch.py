"""Says of all that will be read where it lies, so that what is far away is fetched in few requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from ..checkpoint.checkpoint import Checkpoint
from ..errors import FormatError
from ..planning.plan.plan import Plan
from ..storage.read.base import Advance, File
from ..tensors.composition import leaves
from ..tensors.dtypes import reach
from ..tensors.info import TensorInfo
from .run import Inputs

__all__ = ["announce", "fetch_keys", "fetch_tensors", "keeping", "quiet"]

Ranges = list[tuple[int, int]]
Parts = Iterable[tuple[Checkpoint, TensorInfo | None]]
Advanced = Callable[[int, int], None]


def quiet(done: int, total: int) -> None:
    """Tell nobody."""


def announce(plan: Plan, inputs: Inputs, advance: Advanced = quiet) -> int:
    """Fetch what the steps of a plan read of remote sources; returns the bytes that came.

    ``advance`` is told (bytes that came, bytes that are wanted in all).
    """
    return fetch_tensors(_read(plan, inputs), advance) if _is_remote(*_checkpoints(inputs)) else 0


def fetch_tensors(parts: Parts, advance: Advanced = quiet) -> int:
    """Fetch what tensors lie in, of all of them at once, where that is far away; returns the bytes that came."""
    wanted = _wanted(parts)
    total = sum(end - begin for _, ranges in wanted for begin, end in ranges)
    came = _Counter(lambda done: advance(done, max(done, total)))
    for file, ranges in wanted:
        file.need(ranges, came.add)
    return came.done


def fetch_keys(checkpoint: Checkpoint, keys: Iterable[str], advance: Advanced = quiet) -> int:
    """Fetch what the tensors of some keys lie in, as ``fetch_tensors`` does."""
    return fetch_tensors(((checkpoint, checkpoint[key]) for key in keys), advance) if _is_remote(checkpoint) else 0


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


def _is_remote(*checkpoints: Checkpoint) -> bool:
    return any(file.remote for checkpoint in checkpoints for file in checkpoint.open_files().values())


def _wanted(parts: Parts) -> list[tuple[File, Ranges]]:
    """Return of each remote file the ranges that will be read, each once."""
    found: dict[int, tuple[File, dict[tuple[int, int], None]]] = {}
    for source, info in parts:
        for leaf in leaves(info) if info is not None else ():
            if leaf.storage is None:
                continue
            file = source.file(leaf)
            if file.remote:
                found.setdefault(id(file), (file, {}))[1][_range(leaf)] = None
    return [(file, list(ranges)) for file, ranges in found.values()]


def _read(plan: Plan, inputs: Inputs) -> Iterator[tuple[Checkpoint, TensorInfo | None]]:
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
