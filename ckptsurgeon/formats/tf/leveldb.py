"""Reads LevelDB's sorted tables, which may be compressed with Snappy; TensorFlow's index is such a table.

A table has blocks of sorted keys, which share prefixes. After each block come a byte for its compression and a masked
CRC-32C. At the end of the table are an index block with the positions of the blocks, and a footer of 48 bytes with the
position of the index block (leveldb's ``doc/table_format.md``). LevelDB checks only the blocks that it needs. This
module reads and checks all blocks in order, and refuses a file that two readers could interpret differently.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import FormatError, UnsafeError
from ...storage.crc32c import SHORT, SHORTEST, crc32c, unmasked
from ...storage.read.base import File
from ...util.text import escape
from ..base import limits
from ..base.protobuf import varint

__all__ = ["FOOTER", "MAGIC", "decompress_snappy", "entries", "is_table"]

# Snappy's block format, in which LevelDB's tables may be compressed (google/snappy, format_description.txt).

_RATIO = 24
"""In Snappy, three bytes (a copy) unpack to at most 64, so a block that claims a higher ratio than this is invalid."""


def decompress_snappy(data: bytes, most: int) -> bytes:
    """Return the content of a compressed block; raises FormatError if it is malformed or exceeds ``most`` bytes."""
    size, at = _length(data)
    allowed = min(most, _RATIO * len(data) + 64)
    if size > allowed:
        raise FormatError(
            f"the index cannot be read: a compressed block of {len(data)} bytes claims to unpack to {size} bytes; at "
            f"most {allowed} are allowed.",
            rule="snappy size",
        )
    out = bytearray()
    try:
        while at < len(data):
            at = _element(data, at, out)
            if len(out) > size:
                break
    except IndexError:
        raise FormatError("the index is damaged: a compressed block is truncated.", rule="snappy") from None
    if len(out) != size:
        raise FormatError(
            f"the index is damaged: a compressed block does not have the {size} bytes that it claims.", rule="snappy"
        )
    return bytes(out)


def _length(data: bytes) -> tuple[int, int]:
    """Return the unpacked length at the beginning of a Snappy block, and the offset of the data after it.

    Raises FormatError if there is no valid length.
    """
    size = 0
    for at, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return size, at + 1
    raise FormatError("the index is damaged: a compressed block does not begin with its length.", rule="snappy")


def _element(data: bytes, at: int, out: bytearray) -> int:
    """Append the bytes of the Snappy element at ``at`` to ``out``, and return the offset of the next element.

    An element is a literal, or a copy of earlier output. Raises IndexError if the element ends beyond the data,
    FormatError if it copies bytes from before the output.
    """
    tag = data[at]
    kind = tag & 3
    if kind == 0:
        return _literal(data, at, out)
    if kind == 1:
        length, offset, after = 4 + (tag >> 2 & 7), tag >> 5 << 8 | data[at + 1], at + 2
    else:
        length, width = 1 + (tag >> 2), 2 if kind == 2 else 4
        after = at + 1 + width
        if after > len(data):
            raise IndexError
        offset = int.from_bytes(data[at + 1 : after], "little")
    if not 0 < offset <= len(out):
        raise FormatError(
            "the index is damaged: a compressed block copies bytes from before its beginning.", rule="snappy"
        )
    start = len(out) - offset
    piece = out[start : start + length]
    out += (piece * (length // offset + 1))[:length] if offset < length else piece
    return after


def _literal(data: bytes, at: int, out: bytearray) -> int:
    length, begin = (data[at] >> 2) + 1, at + 1
    if length > 60:
        width = length - 60
        length = int.from_bytes(data[begin : begin + width], "little") + 1
        begin += width
    if begin + length > len(data):
        raise IndexError
    out += data[begin : begin + length]
    return begin + length


FOOTER = 48
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_TRAILER = 5
_PLAIN, _SNAPPY = 0, 1
_MANY = 1 << 16
"""For tables of at least this many bytes, numpy is imported to compute the checksums of the blocks faster."""


@dataclass(frozen=True)
class _Handle:
    """The offset and size of a block in bytes; the size excludes the compression byte and the checksum."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size + _TRAILER


class _TableLimits:
    """How many bytes one table may still use: for unpacked blocks, and for keys."""

    def __init__(self) -> None:
        self.inflated = limits.TABLE_INFLATED
        self.keys = limits.PATH_CHARACTERS


def is_table(file: File) -> bool:
    """Return whether a file ends with the magic number of a table."""
    return file.size >= FOOTER and file.read(file.size - len(MAGIC), len(MAGIC)) == MAGIC


def entries(file: File) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of every entry of a table in order; raises FormatError or UnsafeError if it is invalid."""
    raw = file.read(0, file.size)
    others, index = _footer(raw)
    allowed = _TableLimits()
    end, last = 0, None
    for bound, value in _block(raw, index, allowed):
        handle, after = _handle(value, 0)
        if after != len(value) or handle.offset != end or handle.end > others.offset:
            raise _fault("there is a gap or an overlap between its blocks")
        if last is not None and last >= bound:
            raise _fault("the keys of its index block are not in order")
        end, before = handle.end, last
        for key, content in _block(raw, handle, allowed):
            if last is not None and last >= key:
                raise _fault(f"its keys are not in order at {escape(key.decode('utf-8', 'replace'), 80)}")
            yield key, content
            last = key
        if last is before:
            raise _fault("it has an empty block, which no program writes")
        if last is not None and last > bound:
            raise _fault("its index block contradicts the other blocks")
        last = bound
    if others.offset != end or any(_block(raw, others, allowed)):
        raise _fault("it has entries that its index block does not list")


def _fault(why: str) -> FormatError:
    return FormatError(f"the index is damaged: {why}.", rule="table")


def _footer(raw: bytes) -> tuple[_Handle, _Handle]:
    """Return where the metaindex block is, which TensorFlow leaves empty, and where the index block is.

    Raises FormatError if the footer is not valid.
    """
    footer = raw[-FOOTER:]
    if len(footer) < FOOTER or not footer.endswith(MAGIC):
        raise _fault("it does not end like a LevelDB table: the file is truncated, or not a table")
    others, at = _handle(footer, 0)
    index, at = _handle(footer, at)
    if index.end != len(raw) - FOOTER or others.end != index.offset or footer[at : -len(MAGIC)].strip(b"\0"):
        raise _fault("its footer does not fit the rest of the file, which may be truncated")
    return others, index


def _handle(data: bytes, at: int) -> tuple[_Handle, int]:
    try:
        offset, at = varint(data, at)
        size, at = varint(data, at)
    except ValueError as error:
        raise _fault(f"the position of a block is invalid: {error}") from None
    return _Handle(offset, size), at


def _block(raw: bytes, handle: _Handle, allowed: _TableLimits) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; raises FormatError if its checksum is wrong or it is malformed."""
    content = raw[handle.offset : handle.offset + handle.size]
    trailer = raw[handle.offset + handle.size : handle.end]
    if len(trailer) < _TRAILER:
        raise _fault("a block ends too early: the file is truncated")
    short = SHORT if len(raw) < _MANY else SHORTEST
    if crc32c(trailer[:1], crc32c(content, short=short)) != unmasked(int.from_bytes(trailer[1:], "little")):
        raise FormatError(
            f"the index is damaged: the block at {handle.offset} does not match its checksum.", rule="crc"
        )
    if trailer[0] == _SNAPPY:
        content = decompress_snappy(content, allowed.inflated)
        allowed.inflated -= len(content)
    elif trailer[0] != _PLAIN:
        raise FormatError(
            f"the index cannot be read: the block at {handle.offset} has the unsupported compression {trailer[0]}.",
            rule="table",
        )
    yield from _entries(content, allowed)


def _restarts(block: bytes) -> tuple[int, int]:
    """Return the offset of a block's restart points, and how many there are.

    Each restart point has 32 bits; the last 32 bits of the block are the number of restart points. Raises FormatError
    if the block is too short.
    """
    number = int.from_bytes(block[-4:], "little")
    if len(block) < 4 or not 0 < number <= (len(block) - 4) // 4:
        raise _fault("a block has fewer restart points than it claims")
    return len(block) - 4 - 4 * number, number


def _entries(block: bytes, allowed: _TableLimits) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; a key is stored without the prefix that it shares with the previous key.

    Raises FormatError if the block is not valid, UnsafeError if the keys are too long.
    """
    end, number = _restarts(block)
    key, at, seen = b"", 0, 0
    while at < end:
        restart = seen < number and at == int.from_bytes(block[end + 4 * seen : end + 4 * seen + 4], "little")
        shared, own, size, begin = block[at], block[at + 1], block[at + 2], at + 3  # restart points follow the entries
        if (shared | own | size) >= 0x80:  # numbers of several bytes
            try:
                shared, begin = varint(block, at)
                own, begin = varint(block, begin)
                size, begin = varint(block, begin)
            except ValueError as error:
                raise _fault(f"a block has an invalid entry at {at}: {error}") from None
        if shared > len(key) or own + size > end - begin or shared * restart or not (seen or restart):
            raise _fault(f"the entry at {at} of a block is invalid or reaches beyond the block")
        if shared + own > limits.KEY_CHARACTERS or allowed.keys < shared + own:
            raise UnsafeError("the keys of the index are too long.", rule="key length")
        allowed.keys -= shared + own
        key = key[:shared] + block[begin : begin + own]
        yield key, block[begin + own : begin + own + size]
        at = begin + own + size
        seen += restart
    if end and seen != number:
        raise _fault("a block has a restart point at which no entry begins")
