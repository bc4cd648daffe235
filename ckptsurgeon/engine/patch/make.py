"""Makes a patch: reads the files of the new checkpoint, and encodes the bytes that the old checkpoint does not have."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.base import File, Progress
from ...storage.read.uri import shown
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ..checksums import combine, crc32
from ..part_run import check_unchanged
from .bases import read_tensor
from .blocks import BLOCK, FLOATS, Bytes, Decoder, Encoder
from .in_order import in_order
from .index import NewFile, NewTensor, OldFile, PatchIndex, Segment
from .new_files import NewFiles, equal_files
from .patch_file import PatchWriter
from .signs import Errors, errors_of

__all__ = ["make_patch"]

Given = tuple[Checkpoint, str]
"""An open checkpoint, and the path or address with which it was opened."""
WORTH = 2
"""Changes are stored as signs only if the signs take at most 1 / ``WORTH`` of the space of the exact changes."""
LOOK = 1 << 16
"""How many bytes at the beginning of two tensors are compared to find out whether a tensor was renamed."""


@dataclass(frozen=True)
class _Range:
    """A range of ``nbytes`` bytes of a new file from the byte ``offset`` on: the bytes of a tensor, or other bytes.

    ``key`` is the key of the tensor, "" for other bytes. ``old`` is the key of the old tensor that it is compared with;
    "" if there is none. ``itemsize`` is the size of one element in bytes. ``dtype`` is the dtype of elements whose
    changes are stored as signs; "" if the bytes are stored exactly.
    """

    offset: int
    nbytes: int
    key: str = ""
    itemsize: int = 1
    old: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class _Block:
    """A block of a new file: its bytes, their encoded form, and the CRC-32 of the new bytes and of the old bytes.

    ``errors`` is None if the bytes are those of the new checkpoint.
    """

    new: Bytes
    encoded: bytes
    crc: int
    old_crc: int
    errors: Errors | None = None


def make_patch(
    given_old: Given,
    given_new: Given,
    writer: PatchWriter,
    *,
    level: int = 1,
    signs: Container[str] = (),
    progress: Progress | None = None,
) -> PatchIndex:
    """Write the patch that turns the files of ``given_old`` into the files of ``given_new``; return the patch's index.

    ``given_old`` and ``given_new`` are pairs (open checkpoint, path or address with which it was opened). ``level`` is
    the compression level of Zstandard. ``signs`` are the keys of new tensors of which only the signs of the changes are
    stored, if they are matrices of floats with the shape and dtype of the old ones: the patch then makes files that
    differ from the new ones. Raises SourceError if a file cannot be read, PlanError if a file changes meanwhile,
    OutputError if the patch cannot be written.
    """
    (old, old_path), (new, new_path) = given_old, given_new
    with closing(NewFiles(new, new_path)) as found:
        beside = equal_files(old_path)
        size, done = sum(file.size for _, file in found.files), 0
        files: list[NewFile] = []
        needed: dict[str, OldFile] = {}
        crcs: dict[tuple[int, int, int], int] = {}
        bases, local = _bases(old, new), threading.local()
        signed = {key for key, base in bases.items() if key in signs and _has_signs(old[base], new[key])}
        errors: list[Errors] = []
        for name, file in found.files:
            same = beside(name, file) if name not in new.open_files() else None
            if same is not None:
                needed[name] = same
                files.append(NewFile(name, file.size, same.sha256, (Segment("file", file.size, name),)))
                done += file.size
                continue
            digest = hashlib.sha256()
            pieces = [_Piece(one) for one in _ranges(new, bases, signed, name, file.size)]
            for piece, block in in_order(_tasks(pieces, file, old, level, local)):
                digest.update(block.new.data)
                writer.add(block.encoded)
                piece.add(block)
                done += block.new.size
                if progress is not None:
                    progress(done, size)
            errors += [piece.errors for piece in pieces if piece.errors is not None]
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
    return index


@dataclass
class _Piece:
    """A range of a new file, and the record of each of its blocks.

    ``blocks`` are the sizes of the encoded blocks. ``crcs`` has (CRC-32, number of bytes) of each new block, and
    ``old_crcs`` of each old block.
    """

    range: _Range
    blocks: list[int] = field(default_factory=list)
    crcs: list[tuple[int, int]] = field(default_factory=list)
    old_crcs: list[tuple[int, int]] = field(default_factory=list)
    errors: Errors | None = None

    def add(self, block: _Block) -> None:
        """Add the next encoded block."""
        if block.errors is not None:
            self.errors = block.errors.plus(self.errors)
        self.blocks.append(len(block.encoded))
        self.crcs.append((block.crc, block.new.size))
        self.old_crcs.append((block.old_crc, block.new.size))

    @property
    def segment(self) -> Segment:
        """The segment of the patch for this range."""
        blocks = tuple(self.blocks)
        if not self.range.old:
            return Segment("raw", self.range.nbytes, blocks=blocks)
        same = Segment("same", self.range.nbytes, self.range.old, combine(self.old_crcs))
        kind = "xor" if self.errors is None else "signs"
        return replace(same, kind=kind, blocks=blocks) if any(blocks) else same


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


def _ranges(new: Checkpoint, bases: dict[str, str], signed: Container[str], name: str, size: int) -> Iterator[_Range]:
    """Yield the ranges of a file in order: the ranges of its tensors, and the ranges between them."""
    held: list[_Range] = []
    for key, info in new.items():
        storage = info.storage
        if storage is None or storage.file != name or not info.is_plain or not info.nbytes:
            continue
        itemsize = max(1, DTYPES[info.dtype].bits // 8)
        dtype = info.dtype if key in signed else ""
        held.append(_Range(storage.offset + info.offset, info.nbytes, key, itemsize, bases.get(key, ""), dtype))
    at = 0
    for one in sorted(held, key=lambda one: (one.offset, -one.nbytes)):
        if one.offset < at:
            continue  # it shares its bytes with an earlier tensor
        if one.offset > at:
            yield _Range(at, one.offset - at)
        yield one
        at = one.offset + one.nbytes
    if at < size:
        yield _Range(at, size - at)


def _tasks(
    pieces: Iterable[_Piece], file: File, old: Checkpoint, level: int, local: threading.local
) -> Iterator[Callable[[], tuple[_Piece, _Block]]]:
    """Yield, for each block of a file in order, a function that encodes the block, and returns (its range, block)."""
    for piece in pieces:
        for begin in range(0, piece.range.nbytes, BLOCK):
            yield lambda piece=piece, begin=begin: (piece, _encoded(piece.range, begin, file, old, level, local))  # type: ignore[misc]


def _encoded(one: _Range, begin: int, file: File, old: Checkpoint, level: int, local: threading.local) -> _Block:
    if not hasattr(local, "encoder"):
        local.encoder = Encoder(level)
    encoder: Encoder = local.encoder
    nbytes = min(BLOCK, one.nbytes - begin)
    values = np.empty(nbytes, np.uint8)
    file.readinto(one.offset + begin, values.data)
    if not one.old:
        return _Block(values, encoder.encode(values, None, one.itemsize), crc32(values.data), 0)
    before = np.zeros(nbytes, np.uint8)
    read_tensor(old, one.old, begin, before.data)
    encoded, old_crc = encoder.encode(values, before, one.itemsize), crc32(before.data)
    signs = encoder.encode_signs(values, before, one.dtype) if one.dtype and encoded else b""
    if signs and len(signs) * WORTH <= len(encoded):
        made = before.copy()
        Decoder().decode(signs, made)
        errors = Errors.between(before, values, made, one.dtype)
        if math.isfinite(errors.missing):
            return _Block(made, signs, crc32(made.data), old_crc, errors)
    return _Block(values, encoded, crc32(values.data), old_crc)
