"""The tensors whose bytes stay as they are, and the checksums of all that is read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..sources import File
from ..tensors import Storage
from .checksums import check_storage, checkable
from .copies import Copy, Piece
from .run import Run, checked_on_the_way, has_slot, is_copy
from .transfer import THREADS, copying

__all__ = ["check_storages", "copied_steps"]


@contextmanager
def copied_steps(run: Run) -> Iterator[None]:
    """Copy every tensor whose bytes stay as they are, while the body of the ``with`` computes the others."""
    copies, pieces = [], {}
    for step in run.plan.steps:
        if step.source is None or not has_slot(run, step):
            continue
        info = run.info(step)
        if not is_copy(step, info):
            continue
        source = run.inputs.sources[step.source]
        file, offset, nbytes = run.slots[step.key]
        assert info.storage is not None
        whole = info.nbytes == info.storage.nbytes
        piece = Piece(info.storage.name, nbytes, info.storage.crc32 if whole else None)
        pieces[step.key] = piece
        copies.append(Copy(source.file(info), info.storage.offset + info.offset, file, offset, [piece]))
    nbytes = sum(copy.nbytes for copy in copies)
    with copying(copies, run.advance) as run.check:
        yield
    run.nbytes_read += nbytes
    run.checksums.update({key: piece.checksum() for key, piece in pieces.items()})


def check_storages(run: Run) -> None:
    """Check the records of which only a part is used, or which are computed with."""
    wanted: dict[int, tuple[File, Storage]] = {}
    for step in run.plan.steps:
        for info, source in run.parts(step):
            storage = info.storage
            whole = storage is not None and info.nbytes == storage.nbytes
            passes_by = is_copy(step, info) and whole and storage is not None and storage.crc32c is None
            if not passes_by and not checked_on_the_way(step, info):
                wanted.update((id(one), (file, one)) for file, one in checkable(source, info))
    if not wanted:
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
        list(pool.map(lambda pair: check_storage(*pair), wanted.values()))
