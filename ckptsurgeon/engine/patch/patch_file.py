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
import struct
import zlib
from collections.abc import Sequence

from ...errors import FormatError
from ...formats.base.untrusted import parse_json
from ...storage.json_text import unique_keys
from ...storage.read.base import File
from ...storage.read.uri import open_source
from ...storage.write.staging import StagedFile
from ...util.text import escape
from .blocks import zstandard
from .index import VERSION, PatchIndex

__all__ = ["PatchFile", "PatchWriter", "damaged", "open_patch"]

MAGIC = b"CKPTPTCH"
_HEAD = struct.Struct("<8sI")
_TAIL = struct.Struct("<QQI8s")
MOST_INDEX = 128 << 20
"""The most bytes of an index: that of a model of 200,000 tensors takes 40 MB."""


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
