"""The file of a patch: encoded blocks, one after the other, then an index in JSON, then where the index is.

    "CKPTPTCH", version (4 bytes)
    blocks …
    index: JSON, compressed with Zstandard
    offset and size of the index (8 bytes each), its CRC-32 (4 bytes), "CKPTPTCH"

Numbers are little-endian. The index lists the new files; each is made of segments in order: of bytes that the old
tensor with a key has (``same``), that are changed from it (``xor``), or that are new (``raw``), or of a whole file that
lies beside the old weights (``file``).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ...formats.base.untrusted import parse_json
from ...storage.json_text import unique_keys
from ...storage.read.base import File
from ...storage.read.uri import open_source
from ...storage.write.staging import StagedFile
from ...util.text import escape
from .blocks import BLOCK, zstandard

__all__ = ["NewFile", "NewTensor", "OldFile", "PatchFile", "PatchIndex", "PatchWriter", "Segment", "open_patch"]

MAGIC = b"CKPTPTCH"
VERSION = 1
_HEAD = struct.Struct("<8sI")
_TAIL = struct.Struct("<QQI8s")
MOST_INDEX = 128 << 20
"""The most bytes of an index: that of a model of 200,000 tensors takes 40 MB."""
MOST_BLOCK = BLOCK + BLOCK // 4 + 64
"""The most bytes of an encoded block: a bitmap, planes that are not compressed, and their lengths."""


@dataclass(frozen=True)
class Segment:
    """A run of bytes of a new file; ``kind`` is "same", "xor", "raw" or "file".

    For the first two, ``key`` is a tensor of the old checkpoint, and ``crc`` the CRC-32 of its first ``nbytes`` bytes,
    with zeros after its end; for the last, ``key`` is the name of a file. ``blocks`` are the sizes of the encoded
    blocks: one for each ``BLOCK`` bytes.
    """

    kind: str
    nbytes: int
    key: str = ""
    crc: int = 0
    blocks: tuple[int, ...] = ()

    def to_json(self) -> list[Any]:
        """Return the segment as plain data."""
        return [self.kind, self.nbytes, self.key, self.crc, list(self.blocks)]

    @staticmethod
    def from_json(row: Any) -> Segment:
        """Return the segment that ``row`` describes; raises ValueError or TypeError."""
        kind, nbytes, key, crc, blocks = row
        made = Segment(kind, _natural(nbytes), _text(key), _natural(crc), tuple(map(_natural, blocks)))
        known = kind in ("same", "xor", "raw", "file") and (kind == "raw") == (not key)
        has_blocks = kind in ("xor", "raw")
        if not known or len(made.blocks) != made.number * has_blocks or any(one > MOST_BLOCK for one in made.blocks):
            raise ValueError(f"a segment of {made.nbytes} bytes is not valid")
        return made

    @property
    def number(self) -> int:
        """How many blocks the bytes of the segment have."""
        return -(-self.nbytes // BLOCK)


@dataclass(frozen=True)
class NewFile:
    """A file that the patch makes: its name in the folder, its size, its SHA-256, and what its bytes are."""

    name: str
    size: int
    sha256: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new checkpoint: the number of its file, its place there, the CRC-32 of its bytes if known."""

    file: int
    offset: int
    nbytes: int
    crc: int | None


@dataclass(frozen=True)
class OldFile:
    """A file beside the old weights that is also one of the new files: its size and its SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PatchIndex:
    """What a patch has: the names of both checkpoints, the new files and tensors, and the old files that it needs.

    ``folder`` is whether the new checkpoint is a folder; otherwise it is a single file.
    """

    old: str
    new: str
    folder: bool
    files: tuple[NewFile, ...]
    tensors: Mapping[str, NewTensor]
    old_files: Mapping[str, OldFile]

    def to_json(self) -> dict[str, Any]:
        """Return the index as plain data."""
        return {
            "kind": "ckpt.patch",
            "version": VERSION,
            "old": self.old,
            "new": self.new,
            "folder": self.folder,
            "files": [
                [one.name, one.size, one.sha256, [part.to_json() for part in one.segments]] for one in self.files
            ],
            "tensors": {k: [t.file, t.offset, t.nbytes, t.crc] for k, t in self.tensors.items()},
            "old_files": {name: [one.size, one.sha256] for name, one in self.old_files.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PatchIndex:
        """Return the index that ``data`` describes; raises KeyError, ValueError, TypeError or AttributeError."""
        if (data["kind"], data["version"]) != ("ckpt.patch", VERSION):
            raise ValueError(f"it is {data['kind']!r:.40} of version {data['version']!r:.40}")
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
        )
        _check(index)
        return index


def _check(index: PatchIndex) -> None:
    """Raise ValueError if an index contradicts itself, or if a name is not that of a file in the folder."""
    names = [one.name for one in index.files]
    if len(set(names)) < len(names) or (not index.folder and names != [""]):
        raise ValueError("it names a file twice, or has no file")
    for name in (*(names if index.folder else ()), *index.old_files):
        if name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name or name.startswith(".ckpt"):
            raise ValueError(f"{name!r:.80} is not the name of a file in a folder")
    for one in index.files:
        if sum(segment.nbytes for segment in one.segments) != one.size:
            raise ValueError(f"the parts of {one.name!r:.80} are not its size")
        unknown = [
            segment.key for segment in one.segments if segment.kind == "file" and segment.key not in index.old_files
        ]
        if unknown:
            raise ValueError(f"{unknown[0]!r:.80} is not listed")
    for key, tensor in index.tensors.items():
        if tensor.file >= len(index.files) or tensor.offset + tensor.nbytes > index.files[tensor.file].size:
            raise ValueError(f"{key!r:.80} is beyond its file")
        if any(segment.kind == "file" for segment in index.files[tensor.file].segments):
            raise ValueError(f"{key!r:.80} is in a file beside the weights")


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a number of bytes")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


class PatchWriter:
    """Writes a patch to a temporary file, from its beginning to its end."""

    def __init__(self, file: StagedFile) -> None:
        self._file, self.size = file, 0
        self._write(_HEAD.pack(MAGIC, VERSION))

    def _write(self, data: bytes) -> None:
        self._file.write(self.size, data)
        self.size += len(data)

    def add(self, block: bytes) -> None:
        """Write an encoded block; raises OutputError."""
        if block:
            self._write(block)

    def finish(self, index: PatchIndex) -> None:
        """Write the index, and where it is."""
        text = json.dumps(index.to_json(), separators=(",", ":")).encode()
        data, offset = zstandard().ZstdCompressor(level=9).compress(text), self.size
        self._write(data)
        self._write(_TAIL.pack(offset, len(data), zlib.crc32(data), MAGIC))


class PatchFile:
    """An open patch: its index, and where the encoded blocks of each segment are.

    ``places`` has, for each new file and each of its segments, the offsets of the blocks in the patch.
    """

    def __init__(self, file: File, index: PatchIndex, end: int) -> None:
        self.file, self.index = file, index
        self.places: list[list[Sequence[int]]] = []
        at = _HEAD.size
        for new in index.files:
            self.places.append([])
            for segment in new.segments:
                offsets = []
                for size in segment.blocks:
                    offsets.append(at)
                    at += size
                self.places[-1].append(offsets)
        if at != end:
            raise damaged(file, "its blocks are not where its index says")

    def block(self, offset: int, nbytes: int) -> bytes:
        """Return the encoded bytes of a block."""
        return self.file.read(offset, nbytes)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def damaged(file: File, why: str) -> FormatError:
    """Return the error for a patch that cannot be read."""
    return FormatError(f"{escape(file.uri)} is not a valid patch: {why}.", rule="patch")


def open_patch(path: str) -> PatchFile:
    """Open a patch and read its index.

    Raises FormatError if it is not a valid patch, SourceError if it cannot be read.
    """
    source = open_source(path)
    if not isinstance(source, File):
        raise FormatError(
            f"{escape(path)} is a folder, not a patch.", hint="Name a file that ckpt patch make has written."
        )
    try:
        return PatchFile(source, *_read_index(source))
    except BaseException:
        source.close()
        raise


def _read_index(file: File) -> tuple[PatchIndex, int]:
    if file.size < _HEAD.size + _TAIL.size or _HEAD.unpack(file.read(0, _HEAD.size))[0] != MAGIC:
        raise FormatError(
            f"{escape(file.uri)} is not a patch.", hint="Name a file that ckpt patch make has written.", rule="patch"
        )
    version = _HEAD.unpack(file.read(0, _HEAD.size))[1]
    if version != VERSION:
        raise damaged(file, f"it has version {version}, and this program reads version {VERSION}")
    offset, size, crc, magic = _TAIL.unpack(file.read(file.size - _TAIL.size, _TAIL.size))
    if magic != MAGIC or offset < _HEAD.size or offset + size != file.size - _TAIL.size:
        raise damaged(file, "it is cut short")
    library = zstandard()
    if size > MOST_INDEX:
        raise damaged(file, "its index is too large")
    data = file.read(offset, size)
    if zlib.crc32(data) != crc:
        raise damaged(file, "its index does not match its checksum")
    try:
        if not 0 <= library.frame_content_size(data) <= MOST_INDEX:
            raise ValueError("its index is too large")
        text = library.ZstdDecompressor().decompress(data)
        return PatchIndex.from_json(parse_json(text, unique_keys)), offset
    except (library.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(file, f"its index cannot be read ({escape(str(error), 200)})") from error
