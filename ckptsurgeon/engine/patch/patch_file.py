"""Reads and writes patch files: encoded blocks, an index in JSON, and a footer with the position of the index.

    "CKPTPTCH", version (4 bytes)
    blocks …
    index: JSON, compressed with Zstandard
    offset and size of the index (8 bytes each), its CRC-32 (4 bytes), "CKPTPTCH"

Numbers are little-endian. The index lists the new files. Each new file consists of segments, in order: the bytes of a
tensor of the old checkpoint (``same``), these bytes with differences (``xor``, or ``signs`` from version 2 on, or
``low_rank`` in version 3), new bytes (``raw``), or a whole file of the old checkpoint's folder (``file``).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

from ...errors import FormatError
from ...formats.base.untrusted import parse_json
from ...storage.json_text import unique_keys
from ...storage.read.base import File
from ...storage.read.uri import open_source
from ...storage.write.staged_file import StagedFile
from ...util.text import escape, together
from .blocks import zstandard
from .index import VERSIONS, PatchIndex

__all__ = ["PatchFile", "PatchWriter", "damaged", "open_patch"]

MAGIC = b"CKPTPTCH"
_HEAD = struct.Struct("<8sI")
_TAIL = struct.Struct("<QQI8s")
MOST_INDEX = 128 << 20
"""The maximum size of an index; the index for a model with 200,000 tensors has 40 MB."""


class PatchWriter:
    """Writes a patch to a temporary file, from its beginning to its end."""

    def __init__(self, file: StagedFile) -> None:
        self._file, self.size = file, 0
        self._write(_HEAD.pack(MAGIC, VERSIONS[0]))

    def _write(self, data: bytes) -> None:
        self._file.write(self.size, data)
        self.size += len(data)

    def add(self, block: bytes) -> None:
        """Write an encoded block; raises OutputError."""
        if block:
            self._write(block)

    def finish(self, index: PatchIndex) -> None:
        """Write the index, the footer with its position, and the version."""
        self._file.write(0, _HEAD.pack(MAGIC, index.version))
        text = json.dumps(index.to_json(), separators=(",", ":")).encode()
        data, offset = zstandard().ZstdCompressor(level=9).compress(text), self.size
        self._write(data)
        self._write(_TAIL.pack(offset, len(data), zlib.crc32(data), MAGIC))


class PatchFile:
    """An open patch: its index, and the positions of the encoded blocks.

    ``places[i][j]`` are the offsets, in the patch, of the encoded blocks of segment ``j`` of new file ``i``.
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
            raise damaged(file, "the sizes of its blocks do not match its index")

    def block(self, offset: int, nbytes: int) -> bytes:
        """Return the encoded bytes of a block."""
        return self.file.read(offset, nbytes)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def damaged(file: File, why: str) -> FormatError:
    """Return the error for an invalid patch; ``why`` is the end of the message."""
    return FormatError(f"{escape(file.uri)} is not a valid patch: {why}.", rule="patch")


def open_patch(path: str) -> PatchFile:
    """Open a patch and read its index.

    Raises FormatError if it is not a valid patch, SourceError if it cannot be read.
    """
    source = open_source(path)
    if not isinstance(source, File):
        raise FormatError(
            f"{escape(path)} is a folder, not a patch.", hint="Use a file that ckpt patch make has written."
        )
    try:
        return PatchFile(source, *_read_index(source))
    except BaseException:
        source.close()
        raise


def _read_index(file: File) -> tuple[PatchIndex, int]:
    if file.size < _HEAD.size + _TAIL.size or _HEAD.unpack(file.read(0, _HEAD.size))[0] != MAGIC:
        raise FormatError(
            f"{escape(file.uri)} is not a patch.", hint="Use a file that ckpt patch make has written.", rule="patch"
        )
    version = _HEAD.unpack(file.read(0, _HEAD.size))[1]
    if version not in VERSIONS:
        known = together([*map(str, VERSIONS)])
        raise damaged(file, f"its format version is {version}, but this program reads the versions {known}")
    offset, size, crc, magic = _TAIL.unpack(file.read(file.size - _TAIL.size, _TAIL.size))
    if magic != MAGIC or offset < _HEAD.size or offset + size != file.size - _TAIL.size:
        raise damaged(file, "it is truncated")
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
        index = PatchIndex.from_json(parse_json(text, unique_keys))
        if index.version != version:
            raise ValueError(
                f"the index has version {index.version}, but the header of the file says version {version}"
            )
        return index, offset
    except (library.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(file, f"its index cannot be read ({escape(str(error), 200)})") from error
