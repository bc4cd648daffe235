"""Applies the steps that copy tensors, and checks the bytes that are read against the checksums in their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from ..checkpoint.checkpoint import Checkpoint
from ..storage.read.base import File
from ..tensors.dtypes import is_masked, size_of_float
from ..tensors.info import Storage, TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from ..tensors.quantised.methods import is_packed_in_floats
from .checksums import check_storage, checkable
from .copy_bytes import THREADS, copying
from .copy_ranges import CopyPiece, CopyRange
from .part_run import PartRun, checked_on_the_way, is_copy

__all__ = ["check_storages", "copied_steps"]


@contextmanager
def copied_steps(run: PartRun) -> Iterator[None]:
    """Copy every tensor whose bytes do not change, while the body of the ``with`` computes the other tensors."""
    pieces: dict[str, CopyPiece] = {}
    with copying(_copies(run, pieces), run.advance) as run.check:
        yield
    run.receipt.nbytes_read += sum(piece.nbytes for piece in pieces.values())
    run.receipt.checksums.update({key: piece.checksum() for key, piece in pieces.items()})
    run.receipt.unsound_copies += (key for key, piece in pieces.items() if piece.unsound)
    run.copies.clear()


def _codes(source: Checkpoint) -> QuantisedTensors:
    return source.codes


def _copies(run: PartRun, pieces: dict[str, CopyPiece]) -> Iterator[CopyRange]:
    """Yield the ranges to copy, in the order of the output; put the ``CopyPiece`` of each tensor into ``pieces``."""
    for key, (offset, nbytes) in run.part.layout.slots.items():
        if key not in run.copies:
            continue
        step, info = run.copies[key]
        assert step.source is not None
        assert info.storage is not None
        source = run.inputs.sources[step.source]
        whole = info.nbytes == info.storage.nbytes
        is_looked_at = size_of_float(info.dtype) and not (info.storage.big_endian or is_masked(key))
        is_packed = is_packed_in_floats(step.source_key, info.shape, partial(_codes, source))
        dtype = info.dtype if is_looked_at and not is_packed else ""
        piece = pieces[key] = CopyPiece(info.storage.name, nbytes, info.storage.crc32 if whole else None, dtype)
        yield CopyRange(source.file(info), info.storage.offset + info.offset, run.file, offset, [piece])


def check_storages(runs: Iterable[PartRun]) -> None:
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
