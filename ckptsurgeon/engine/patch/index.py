"""Defines the index of a patch: which files the patch makes, from which bytes, and where the tensors are in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from ...tensors.ops.casts import raw_dtype
from .blocks import BLOCK, FLOATS
from .low_rank import fits_in_memory

__all__ = ["BASED", "VERSIONS", "LowRank", "NewFile", "NewTensor", "OldFile", "PatchIndex", "Segment"]

VERSIONS = (1, 2, 3)
"""The versions of patches that are read.

A patch has version 3 if it has segments of the kind "low_rank", otherwise 2 if it has segments of the kind "signs",
otherwise 1.
"""
BASED = ("same", "xor", "signs", "low_rank")
"""The kinds of segments that are made from the bytes of a tensor of the old checkpoint."""
MOST_BLOCK = BLOCK + BLOCK // 4 + 64
"""The maximum size of an encoded block: a bitmap, planes that are not compressed, and their lengths."""


@dataclass(frozen=True)
class LowRank:
    """The factors of the change of a matrix: the dtype and the number of columns of the matrix, and the rank.

    ``error`` is the Frobenius norm of the errors of the matrix, divided by the Frobenius norm of the change.
    """

    dtype: str
    columns: int
    rank: int
    error: float

    @staticmethod
    def from_json(row: Any, nbytes: int) -> LowRank:
        """Return the factors that ``row`` describes, for a matrix of ``nbytes``; raises ValueError or TypeError."""
        dtype, columns, rank, error = row
        made = LowRank(_text(dtype), _natural(columns), _natural(rank), _number(error))
        width = raw_dtype(dtype).itemsize * made.columns if dtype in FLOATS else 0
        shape = (nbytes // width, made.columns) if width else (0, 0)
        if not width or nbytes % width or not 0 < made.rank < min(shape) or not fits_in_memory(shape, made.rank):
            raise ValueError(f"factors of rank {made.rank} do not fit a segment of {nbytes} bytes")
        return made


@dataclass(frozen=True)
class Segment:
    """A range of ``nbytes`` bytes of a new file; ``kind`` says how these bytes are made.

    "same": from the bytes of a tensor of the old checkpoint. "xor": from such bytes and stored differences, by XOR.
    "signs": from such bytes and, in each block, either the signs of the changes and one scale for all, or differences
    as for "xor". "low_rank": from such bytes and, in each block, either rows of the left factor of the changes, or
    differences as for "xor". ``low_rank`` then describes the factors, and an additional last block has the right
    factor. "raw": from bytes in the patch. "file": from a whole file in the folder of the old checkpoint. For the kinds
    in ``BASED``, ``key`` is the key of the old tensor. ``crc`` is the CRC-32 of the first ``nbytes`` bytes of this
    tensor; if the tensor is shorter, zeros follow. For "file", ``key`` is the name of the file. ``blocks`` are the
    sizes in bytes of the segment's encoded blocks; each encodes ``BLOCK`` bytes.
    """

    kind: str
    nbytes: int
    key: str = ""
    crc: int = 0
    blocks: tuple[int, ...] = ()
    low_rank: LowRank | None = None

    def to_json(self) -> list[Any]:
        """Return the segment as plain data."""
        row = [self.kind, self.nbytes, self.key, self.crc, list(self.blocks)]
        return row if self.low_rank is None else [*row, list(astuple(self.low_rank))]

    @staticmethod
    def from_json(row: Any) -> Segment:
        """Return the segment that ``row`` describes; raises ValueError or TypeError."""
        kind, nbytes, key, crc, blocks, *more = row
        made = Segment(kind, _natural(nbytes), _text(key), _natural(crc), tuple(map(_natural, blocks)))
        known = kind in (*BASED, "raw", "file") and (kind == "raw") == (not key)
        number = made.number if kind in ("xor", "signs", "low_rank", "raw") else 0
        if kind == "low_rank":
            (factors,) = more
            made = replace(made, low_rank=LowRank.from_json(factors, made.nbytes))
        known = known and len(more) == (kind == "low_rank") == len(made.blocks) - number
        sizes, rights = made.blocks[:number], made.blocks[number:]
        if not known or any(one > MOST_BLOCK for one in sizes) or any(not 0 < one <= made.most_right for one in rights):
            raise ValueError(f"the kind, key and blocks of a segment of {made.nbytes} bytes do not fit together")
        return made

    @property
    def number(self) -> int:
        """The number of blocks of the segment, without the block of the right factor."""
        return -(-self.nbytes // BLOCK)

    @property
    def most_right(self) -> int:
        """The maximum size of the encoded right factor: planes that are not compressed, and their lengths."""
        return 0 if self.low_rank is None else 4 * self.low_rank.rank * self.low_rank.columns + 64


@dataclass(frozen=True)
class NewFile:
    """A file that the patch makes: its name in the folder, its size, its SHA-256, and the segments it consists of."""

    name: str
    size: int
    sha256: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new checkpoint, stored as ``nbytes`` bytes from the byte ``offset`` of a file on.

    ``file`` is the index of the file in the patch. ``crc`` is the CRC-32 of the bytes; None if it is not known.
    """

    file: int
    offset: int
    nbytes: int
    crc: int | None


@dataclass(frozen=True)
class OldFile:
    """The size and SHA-256 of a file without weights that is the same in the folders of both checkpoints."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PatchIndex:
    """The index of a patch, which describes all its contents.

    ``old`` and ``new`` are the names of the two checkpoints. ``folder`` is whether the new checkpoint is a folder;
    otherwise it is a single file. ``files`` are the files that the patch makes. ``tensors`` is {key: where the tensor
    is in these files}. ``old_files`` is {name: size and SHA-256} of the old files that the patch copies whole.
    ``errors`` is empty if the files are equal to the files of the new checkpoint; else it has the error of all
    approximated changes and the largest error of a tensor's weights, both relative (see ``Patch``).
    """

    old: str
    new: str
    folder: bool
    files: tuple[NewFile, ...]
    tensors: Mapping[str, NewTensor]
    old_files: Mapping[str, OldFile]
    errors: tuple[float, ...] = ()

    @property
    def version(self) -> int:
        """The version of the patch, in ``VERSIONS``."""
        kinds = {part.kind for one in self.files for part in one.segments}
        return 3 if "low_rank" in kinds else 2 if "signs" in kinds else 1

    def to_json(self) -> dict[str, Any]:
        """Return the index as plain data."""
        return {
            "kind": "ckpt.patch",
            "version": self.version,
            "old": self.old,
            "new": self.new,
            "folder": self.folder,
            "files": [
                [one.name, one.size, one.sha256, [part.to_json() for part in one.segments]] for one in self.files
            ],
            "tensors": {k: [t.file, t.offset, t.nbytes, t.crc] for k, t in self.tensors.items()},
            "old_files": {name: [one.size, one.sha256] for name, one in self.old_files.items()},
            **({"errors": list(self.errors)} if self.errors else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PatchIndex:
        """Return the index that ``data`` describes; raises KeyError, ValueError, TypeError or AttributeError."""
        if data["kind"] != "ckpt.patch" or type(data["version"]) is not int or data["version"] not in VERSIONS:
            known = " or ".join(map(str, VERSIONS))
            raise ValueError(
                f"it is {data['kind']!r:.40} of version {data['version']!r:.40}, not 'ckpt.patch' of version {known}"
            )
        index = PatchIndex(
            _text(data["old"]),
            _text(data["new"]),
            data["folder"] is True,
            tuple(
                NewFile(_text(name), _natural(size), _text(sha256), tuple(map(Segment.from_json, segments)))
                for name, size, sha256, segments in data["files"]
            ),
            {
                key: NewTensor(
                    _natural(file), _natural(offset), _natural(nbytes), None if crc is None else _natural(crc)
                )
                for key, (file, offset, nbytes, crc) in data["tensors"].items()
            },
            {name: OldFile(_natural(size), _text(sha256)) for name, (size, sha256) in data["old_files"].items()},
            tuple(map(_number, data.get("errors", ()))),
        )
        if len(index.errors) != 2 * (index.version > 1):
            number = 2 * (index.version > 1)
            raise ValueError(f"the index has {len(index.errors)} errors of approximated changes, not {number}")
        if index.version != data["version"]:
            raise ValueError(f"the index says version {data['version']}, but has the fields of version {index.version}")
        _check(index)
        return index


def _check(index: PatchIndex) -> None:
    """Raise ValueError if an index contradicts itself, or if a file name contains a folder or is not allowed."""
    names = [one.name for one in index.files]
    if len(set(names)) < len(names):
        raise ValueError("it lists a file twice")
    if not index.folder and names != [""]:
        raise ValueError("a patch for a single file must list exactly one file, with an empty name")
    for name in (*(names if index.folder else ()), *index.old_files):
        if name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name or name.startswith(".ckpt"):
            raise ValueError(f"{name!r:.80} is not a valid file name: it must have no folder, and not begin with .ckpt")
    for one in index.files:
        if sum(segment.nbytes for segment in one.segments) != one.size:
            raise ValueError(f"the sizes of the segments of {one.name!r:.80} do not add up to its size")
        unknown = [
            segment.key for segment in one.segments if segment.kind == "file" and segment.key not in index.old_files
        ]
        if unknown:
            raise ValueError(
                f"a segment copies the file {unknown[0]!r:.80}, which the index does not list as an old file"
            )
    for key, tensor in index.tensors.items():
        if tensor.file >= len(index.files) or tensor.offset + tensor.nbytes > index.files[tensor.file].size:
            raise ValueError(f"the tensor {key!r:.80} is in no file, or ends after the end of its file")
        if any(segment.kind == "file" for segment in index.files[tensor.file].segments):
            raise ValueError(f"the index places the tensor {key!r:.80} in a file that is not a weight file")


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not an integer of 0 or more")
    return value


def _number(value: Any) -> float:
    if type(value) is not float or not value >= 0:
        raise ValueError(f"{value!r:.40} is not a floating-point number of 0 or more")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a string")
    return value
