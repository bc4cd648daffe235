"""Carries out the steps whose tensors are copied, and checks the storages that are read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..storage.read.base import File
from ..tensors.info import Storage, TensorInfo
from .checksums import check_storage, checkable
from .copies import Copy, Piece
from .run import Run, checked_on_the_way, is_copy
from .transfer import THREADS, copying

__all__ = ["check_storages", "copied_steps"]


@contextmanager
def copied_steps(run: Run) -> Iterator[None]:
    """Copy every tensor whose bytes stay as they are, while the body of the ``with`` computes the others."""
    pieces: dict[str, Piece] = {}
    with copying(_copies(run, pieces), run.advance) as run.check:
        yield
    run.nbytes_read += sum(piece.nbytes for piece in pieces.values())
    run.checksums.update({key: piece.checksum() for key, piece in pieces.items()})
    run.copies.clear()


def _copies(run: Run, pieces: dict[str, Piece]) -> Iterator[Copy]:
    """Yield what is to be copied, in the order of what is written; keep the piece of each key."""
    for key, file, offset, nbytes in run.slots():
        if key not in run.copies:
            continue
        step, info = run.copies[key]
        assert step.source is not None
        assert info.storage is not None
        source = run.inputs.sources[step.source]
        whole = info.nbytes == info.storage.nbytes
        piece = pieces[key] = Piece(info.storage.name, nbytes, info.storage.crc32 if whole else None)
        yield Copy(source.file(info), info.storage.offset + info.offset, file, offset, [piece])


def check_storages(run: Run) -> None:
    """Check the records of which only a part is used, or which are computed with."""
    wanted: dict[int, tuple[File, Storage]] = {}
    partly = [step for step, info in run.copies.values() if not _passes_by(info)]
    for step in (*partly, *run.others, *run.shared):
        for info, source in run.parts(step):
            if not (is_copy(step, info) and _passes_by(info)) and not checked_on_the_way(step, info):
                wanted.update((id(one), (file, one)) for file, one in checkable(source, info))
    if not wanted:
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
        list(pool.map(lambda pair: check_storage(*pair), wanted.values()))


def _passes_by(info: TensorInfo) -> bool:
    """Whether copying a tensor reads all that has a checksum: its whole record, or nothing."""
    storage = info.storage
    if storage is None or not storage.has_checksum:
        return storage is not None
    return info.nbytes == storage.nbytes and storage.crc32c is None
