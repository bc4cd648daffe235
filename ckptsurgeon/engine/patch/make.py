"""Makes a patch: reads the files of the new checkpoint, and encodes the bytes that the old checkpoint does not have."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.base import File, Progress
from ...storage.read.uri import shown
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ..checksums import combine, crc32
from ..one_output_part import check_unchanged
from .bases import read_tensor
from .blocks import BLOCK, FLOATS, Bytes, Decoder, Encoder
from .factored import matrix_shape, why_exact
from .in_order import in_order
from .index import NewFile, NewTensor, OldFile, PatchIndex, Segment
from .low_rank import RightFactor, rows_of
from .new_files import NewFiles, equal_files
from .patch_file import PatchWriter
from .pieces import EncodedBlock, FilePiece, FileRange
from .signs import Errors, errors_of

__all__ = ["make_patch"]

Given = tuple[Checkpoint, str]
"""An open checkpoint, and the path or address with which it was opened."""
WORTH = 2
"""Changes are approximated only if this takes at most 1 / ``WORTH`` of the space of the exact changes."""
LOOK = 1 << 16
"""How many bytes at the beginning of two tensors are compared to find out whether a tensor was renamed."""


def make_patch(
    given_old: Given,
    given_new: Given,
    writer: PatchWriter,
    *,
    level: int = 1,
    signs: Container[str] = (),
    low_rank: Container[str] = (),
    rank: int = 0,
    progress: Progress | None = None,
) -> tuple[PatchIndex, dict[str, str]]:
    """Write the patch that turns the files of ``given_old`` into the files of ``given_new``.

    Return the patch's index, and {key: why} for matrices in ``low_rank`` that are stored exactly.

    ``given_old`` and ``given_new`` are pairs (open checkpoint, path or address with which it was opened). ``level`` is
    the compression level of Zstandard. ``signs`` and ``low_rank`` are keys of new tensors whose changes are
    approximated: by their signs and a scale, or by a product of rank ``rank``. This is done only for matrices of floats
    with the shape and dtype of the old tensors. The patch then makes files that differ from the new files. Raises
    SourceError if a file cannot be read, PlanError if a file changes meanwhile, OutputError if the patch cannot be
    written.
    """
    (old, old_path), (new, new_path) = given_old, given_new
    with closing(NewFiles(new, new_path)) as found:
        beside = equal_files(old_path)
        size, done = sum(file.size for _, file in found.files), 0
        files: list[NewFile] = []
        needed: dict[str, OldFile] = {}
        crcs: dict[tuple[int, int, int], int] = {}
        bases, local = _bases(old, new), threading.local()
        near = {key: new[key].dtype for key, base in bases.items() if key in signs and _has_signs(old[base], new[key])}
        wanted = [key for key, info in new.items() if key in low_rank and len(info.shape) > 1]
        unfit = {key: why_exact(old[bases[key]] if key in bases else None, new[key], rank) for key in wanted}
        near |= {key: new[key].dtype for key, why in unfit.items() if not why}
        errors: list[Errors] = []
        exact: dict[str, str] = {}
        for name, file in found.files:
            same = beside(name, file) if name not in new.open_files() else None
            if same is not None:
                needed[name] = same
                files.append(NewFile(name, file.size, same.sha256, (Segment("file", file.size, name),)))
                done += file.size
                continue
            digest = hashlib.sha256()
            ranges = _ranges(new, bases, near, name, file.size)
            pieces = [FilePiece(_ranked(one, new, low_rank, rank), why=unfit.get(one.key, "")) for one in ranges]
            for piece, block in in_order(_tasks(pieces, file, old, level, local)):
                digest.update(block.new.data)
                writer.add(block.encoded)
                writer.add(piece.add(block))
                done += block.new.size
                if progress is not None:
                    progress(done, size)
            errors += [piece.errors for piece in pieces if piece.errors is not None]
            exact |= {piece.range.key: piece.why for piece in pieces if piece.why and piece.segment.kind != "same"}
            for piece in pieces:
                crcs[len(files), piece.range.offset, piece.range.nbytes] = combine(piece.crcs)
            files.append(NewFile(name, file.size, digest.hexdigest(), tuple(piece.segment for piece in pieces)))
        check_unchanged((old, new), "it was opened", "Make the patch again.")
        found.check_unchanged()
    numbers = {name: number for number, (name, _) in enumerate(found.files)}
    index = PatchIndex(
        _name(old), _name(new), found.folder, tuple(files), _tensors(new, numbers, crcs), needed,
        errors_of(errors),
    )  # fmt: skip
    writer.finish(index)
    return index, exact


def _tensors(
    new: Checkpoint, numbers: Mapping[str, int], crcs: Mapping[tuple[int, int, int], int]
) -> dict[str, NewTensor]:
    """Return {key: position in the new files} for every tensor that is stored as plain bytes.

    ``numbers`` is {name of a file: its index}. ``crcs`` is {(index of a file, offset, number of bytes): CRC-32}. If the
    bytes of a tensor are a part of another tensor's bytes, the tensor gets no CRC-32.
    """
    found = {}
    for key, info in new.items():
        if info.is_plain and info.storage is not None and info.nbytes:
            place = numbers[info.storage.file], info.storage.offset + info.offset, info.nbytes
            found[key] = NewTensor(*place, crcs.get(place))
    return found


def _name(checkpoint: Checkpoint) -> str:
    path = shown(checkpoint.path)
    return os.path.basename(path.rstrip("/")) or path


def _bases(old: Checkpoint, new: Checkpoint) -> dict[str, str]:
    """Return {key of a new tensor: key of the old tensor that it is compared with}; some new tensors have none.

    The old tensor is the one with the same key, if it has the same dtype. Otherwise it is an old tensor that was
    probably renamed: its key is not in the new checkpoint, and it has the same dtype, shape and first bytes.
    """
    found = {key: key for key, info in new.items() if _is_base(old.get(key), info)}
    others = {key: info for key, info in new.items() if key not in found and info.is_plain and info.nbytes}
    wanted = {(info.dtype, info.shape) for info in others.values()}
    free = {
        (info.dtype, info.shape, _first_bytes(old, info)): key
        for key, info in old.items()
        if key not in new and info.is_plain and (info.dtype, info.shape) in wanted
    }
    for key, info in others.items():
        other = free.get((info.dtype, info.shape, _first_bytes(new, info))) if free else None
        if other is not None:
            found[key] = other
    return found


def _is_base(old: TensorInfo | None, new: TensorInfo) -> bool:
    return old is not None and old.is_plain and new.is_plain and old.dtype == new.dtype and old.nbytes > 0


def _first_bytes(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    assert info.storage is not None  # only plain tensors are compared
    return checkpoint.file(info).read(info.storage.offset + info.offset, min(LOOK, info.nbytes))


def _has_signs(old: TensorInfo, new: TensorInfo) -> bool:
    return new.dtype in FLOATS and len(new.shape) > 1 and old.shape == new.shape


def _ranked(one: FileRange, new: Checkpoint, low_rank: Container[str], rank: int) -> FileRange:
    """Return ``one``; if its change will be stored as low-rank factors, with ``rank`` and ``columns`` set."""
    if not one.dtype or one.key not in low_rank:
        return one
    return replace(one, rank=rank, columns=matrix_shape(new[one.key])[1])


def _ranges(
    new: Checkpoint, bases: dict[str, str], near: Mapping[str, str], name: str, size: int
) -> Iterator[FileRange]:
    """Yield the ranges of the file ``name`` in order: the ranges of its tensors, and the ranges between them.

    ``bases`` is {key of a new tensor: key of the old tensor}. ``near`` is {key: dtype} of the tensors whose changes are
    approximated.
    """
    held: list[FileRange] = []
    for key, info in new.items():
        storage = info.storage
        if storage is None or storage.file != name or not info.is_plain or not info.nbytes:
            continue
        itemsize = max(1, DTYPES[info.dtype].bits // 8)
        where = storage.offset + info.offset, info.nbytes
        held.append(FileRange(*where, key, itemsize, bases.get(key, ""), near.get(key, "")))
    at = 0
    for one in sorted(held, key=lambda one: (one.offset, -one.nbytes)):
        if one.offset < at:
            continue  # it shares its bytes with an earlier tensor
        if one.offset > at:
            yield FileRange(at, one.offset - at)
        yield one
        at = one.offset + one.nbytes
    if at < size:
        yield FileRange(at, size - at)


def _tasks(
    pieces: Iterable[FilePiece], file: File, old: Checkpoint, level: int, local: threading.local
) -> Iterator[Callable[[], tuple[FilePiece, EncodedBlock]]]:
    """Yield, for each block of a file in order, a function that encodes the block, and returns (its range, block)."""
    for piece in pieces:
        if piece.range.rank:
            piece.find_factors(file, old, level)
        for begin in range(0, piece.range.nbytes, BLOCK):
            yield lambda piece=piece, begin=begin: (piece, _encoded(piece, begin, file, old, level, local))  # type: ignore[misc]


def _encoded(
    piece: FilePiece, begin: int, file: File, old: Checkpoint, level: int, local: threading.local
) -> EncodedBlock:
    one = piece.range
    if not hasattr(local, "encoder"):
        local.encoder = Encoder(level)
    encoder: Encoder = local.encoder
    nbytes = min(BLOCK, one.nbytes - begin)
    values = np.empty(nbytes, np.uint8)
    file.readinto(one.offset + begin, values.data)
    if not one.old:
        return EncodedBlock(values, encoder.encode(values, None, one.itemsize), crc32(values.data), 0)
    before = np.zeros(nbytes, np.uint8)
    read_tensor(old, one.old, begin, before.data)
    encoded, old_crc = encoder.encode(values, before, one.itemsize), crc32(before.data)
    near = _approximated(piece, begin, values, before, encoder) if one.dtype and encoded else b""
    share = len(piece.right) * nbytes // one.nbytes
    if near and (len(near) + share) * WORTH <= len(encoded):
        made = before.copy()
        Decoder().decode(near, made, RightFactor(piece.factors.right, one.dtype) if piece.factors else None, begin)
        errors = Errors.between(before, values, made, one.dtype)
        if math.isfinite(errors.missing):
            return EncodedBlock(made, near, crc32(made.data), old_crc, errors)
    return EncodedBlock(values, encoded, crc32(values.data), old_crc)


def _approximated(piece: FilePiece, begin: int, new: Bytes, old: Bytes, encoder: Encoder) -> bytes:
    """Return an encoded block with the approximated changes from ``old`` to ``new``; b"" if this is impossible."""
    one = piece.range
    if not one.rank:
        return encoder.encode_signs(new, old, one.dtype)
    if piece.factors is None:
        return b""
    rows = rows_of(begin // one.itemsize, new.size // one.itemsize, one.columns)
    return encoder.encode_factor(piece.factors.left[rows], one.dtype)
