"""Writes the parts (files) of an output, one after another; ``one_output_part`` writes each of them."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from threading import Lock, Thread

from ..checkpoint.checkpoint import Checkpoint
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..storage.read.base import File, Progress
from ..storage.read.local import take_zeros
from ..tensors.composition import leaves
from ..tensors.info import Storage, TensorInfo
from .checksums import check_storage, checkable
from .copy_bytes import THREADS, CopyPiece, copying, ranges_of
from .one_output_part import PartRun, check_unchanged, checked_on_the_way, is_copy
from .output.layout import OutputFile, OutputShape
from .rank_files import SpreadFile

__all__ = ["ByteCounter", "plan_of_parts", "steps_of_parts", "write_frame", "write_parts"]

WATCH_S = 1.0
"""Seconds between two calls of ``ByteCounter``'s ``watch``."""


def steps_of_parts(plan: Plan, shape: OutputShape) -> Mapping[str, Sequence[Step]]:
    """Return {name of a file of the output: the steps whose tensors are in this file}."""
    if len(shape.parts) == 1:
        return {shape.parts[0].name: plan.steps}
    name_of = {key: part.name for part in shape.parts for key in part.layout.slots}
    found: dict[str, list[Step]] = {part.name: [] for part in shape.parts}
    for step in plan.steps:
        found[name_of[step.key]].append(step)
    return found


def plan_of_parts(plan: Plan, steps: Mapping[str, Sequence[Step]], parts: Sequence[OutputFile]) -> Plan:
    """Return ``plan`` with only the steps of the files ``parts``; ``steps`` is {name of a file: its steps}."""
    return replace(plan, steps=tuple(step for part in parts for step in steps[part.name]))


def write_parts(runs: Sequence[PartRun], done: Callable[[PartRun], None]) -> None:
    """Write the tensors of files of an output, one file after the other; each of ``runs`` is one file.

    ``done`` is called with each run when all tensors of its file are written. Values that the destination's initialiser
    draws are written into all files while the first file is written, so that the model is built only once.
    """
    _check_storages(runs)
    for number, run in enumerate(runs):
        with _copied(run) if run.copies else nullcontext():
            if number == 0:
                with _importing_torch(runs):
                    _compute(run)
                _draw(runs)
            else:
                _compute(run)
        is_last = number == len(runs) - 1  # then all files, also those that no step has read
        read = _read_files(run) if len(runs) > 1 else []
        names = None if is_last else {name for _, own in read for name in own}
        for one in run.inputs.sources:
            if zeros := take_zeros(one.open_files(), names):
                run.receipt.zeros.setdefault(one.path, {}).update(zeros)
        for source, own in read:
            check_unchanged([source], names=own)
        for step in run.shared:
            run.receipt.checksums[step.key] = run.receipt.checksums[step.tied_to]
        done(run)


def _check_storages(runs: Sequence[PartRun]) -> None:
    """Raise FormatError if a storage that the runs will read does not match its checksum.

    This function checks storages of which only a part is copied, and the storages of the inputs of computed tensors.
    Other storages are checked while they are read: storages that are copied completely, and the inputs of some merges.
    """
    wanted: dict[int, tuple[File, Storage]] = {}
    may_have: dict[int, bool] = {}
    # Of each source once: the runs share their sources, which may have many tensors.
    for run in runs:
        read = [*run.inputs.sources, *([run.keeper] if run.keeper is not None else [])]
        for source in read:
            if id(source) not in may_have:
                may_have[id(source)] = _may_have_checksums(source)
        if not any(may_have[id(source)] for source in read):
            continue
        partly = [step for step, info in run.copies.values() if not _passes_by(info)]
        for step in (*partly, *run.others, *run.shared):
            for info, source in run.sources_of(step):
                if not (is_copy(step, info) and _passes_by(info)) and not checked_on_the_way(step, info):
                    wanted.update((id(one), (file, one)) for file, one in checkable(source, info))
    if not wanted:
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
        list(pool.map(lambda pair: check_storage(*pair), wanted.values()))


def _may_have_checksums(source: Checkpoint) -> bool:
    return any(one.made is not None or one.storage is None or one.storage.has_checksum for one in source.values())


def _passes_by(info: TensorInfo) -> bool:
    """Return whether a tensor can be copied without comparing its storage with a checksum first.

    It can if its storage has no checksum. It also can if the tensor is the whole storage and the checksum is a CRC-32:
    then the copy itself computes and compares the CRC-32. A tensor without storage, which is computed, cannot.
    """
    storage = info.storage
    if storage is None or not storage.has_checksum:
        return storage is not None
    return info.nbytes == storage.nbytes and storage.crc32c is None


@contextmanager
def _copied(run: PartRun) -> Iterator[None]:
    """Copy every tensor whose bytes do not change, while the body of the ``with`` computes the other tensors."""
    pieces: dict[str, CopyPiece] = {}
    with copying(ranges_of(run, pieces), run.advance) as run.check:
        yield
    run.receipt.nbytes_read += sum(piece.nbytes for piece in pieces.values())
    run.receipt.checksums.update({key: piece.checksum() for key, piece in pieces.items()})
    run.receipt.unsound_copies += (key for key, piece in pieces.items() if piece.unsound)
    run.copies.clear()


def _read_files(run: PartRun) -> list[tuple[Checkpoint, set[str]]]:
    """Return the sources of a run, each with the names of its files that the run's steps have read."""
    read: dict[int, tuple[Checkpoint, set[str]]] = {}
    for step in run.steps:
        for info, source in run.sources_of(step):
            names = read.setdefault(id(source), (source, set()))[1]
            names.update(leaf.storage.file for leaf in leaves(info) if leaf.storage is not None)
    return list(read.values())


def _compute(run: PartRun) -> None:
    """Compute and write all tensors that are not plain copies; if there are none, numpy is not imported."""
    if run.others:
        from .compute.compute_steps import compute_steps

        compute_steps(run)


def _draw(runs: Sequence[PartRun]) -> None:
    if any(run.draws(step) for run in runs for step in run.others):
        from .compute.drawing import draw_steps

        draw_steps(runs)


TURN_S = 0.0005
"""How long the import of torch may keep Python's interpreter lock while other threads wait for it.

They ask for it after each call of NumPy; with Python's 5 ms they would hardly compute anything during the import.
"""


@contextmanager
def _importing_torch(runs: Sequence[PartRun]) -> Iterator[None]:
    """Import torch during the block, which takes a second, if it will draw values after the block."""
    if "torch" in sys.modules or not any(map(_draws_with_torch, runs)):
        yield
        return
    thread, turn = Thread(target=_import_torch, name="import"), sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        sys.setswitchinterval(turn)


def _draws_with_torch(run: PartRun) -> bool:
    target = run.inputs.target
    return target is not None and target.pieces is not None and any(map(run.draws, run.others))


def _import_torch() -> None:
    with suppress(Exception):  # drawing imports it, too, and raises the error
        import torch  # noqa: F401


def write_frame(run: PartRun) -> None:
    """Write the bytes of an output file that belong to no tensor, such as the header; put their SHA-256 in its receipt.

    If the output has a file for each rank, the SHA-256 of each file is put into the ``SpreadFile`` instead.
    """
    if isinstance(run.file, SpreadFile):
        run.file.finish()
        return
    digest = hashlib.sha256()
    for offset, data in run.part.layout.frame(run.receipt.checksums, ()):
        digest.update(data)
        run.file.write(offset, data)
    run.receipt.digest = digest.hexdigest()


class ByteCounter:
    """Calls ``progress`` with (bytes done, total bytes); both include fetched bytes. Any thread may use this object.

    ``size`` is the number of bytes to write; an interrupted run has already written ``kept`` of them. ``watch`` is
    called about once a second: it raises an error if another process has failed, so that this process stops.
    """

    def __init__(
        self, progress: Progress | None, size: int, kept: int = 0, *, watch: Callable[[], None] | None = None
    ) -> None:
        self._progress, self._size, self._done = progress or (lambda done, total: None), size, kept
        self._kept, self._watch, self._watched, self._lock = kept, watch, time.monotonic(), Lock()

    def fetching(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes have been fetched."""
        self._progress(self._kept + done, self._size + total)
        self._look()

    def fetched(self, nbytes: int) -> None:
        """Set the number of bytes that were fetched before writing began."""
        self._done, self._size = self._kept + nbytes, self._size + nbytes

    def advance(self, nbytes: int) -> None:
        """Report that ``nbytes`` more bytes were written."""
        with self._lock:
            self._done += nbytes
            self._progress(self._done, self._size)
        self._look()

    def _look(self) -> None:
        if self._watch is not None and time.monotonic() - self._watched > WATCH_S:
            self._watched = time.monotonic()
            self._watch()
