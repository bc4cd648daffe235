"""LevelDB's sorted table, which may be compressed with Snappy; TensorFlow keeps its index in one.

Blocks of sorted keys that share prefixes, each followed by a byte for its compression and a masked CRC-32C; an index
block that names them; a footer of 48 bytes that names the index (leveldb's ``doc/table_format.md``). Read whole and in
order, and stricter than LevelDB, which looks at what it is asked for: a file that two readers could read differently
is refused.
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
from .protobuf import varint

__all__ = ["FOOTER", "entries", "is_table", "unsnapped"]

# Snappy's block format, which LevelDB's tables may be compressed with (google/snappy, format_description.txt).

_RATIO = 24
"""A copy of three bytes makes 64, and a file that says more of itself lies."""


def unsnapped(data: bytes, most: int) -> bytes:
    """Return what a compressed block holds; raises FormatError where it is malformed or holds over ``most`` bytes."""
    size, at = _length(data)
    if size > most or size > _RATIO * len(data) + 64:
        raise FormatError(
            f"a block of {len(data)} bytes is said to unpack to {size}; at most {most} are read.", rule="snappy size"
        )
    out = bytearray()
    try:
        while at < len(data):
            at = _element(data, at, out)
            if len(out) > size:
                break
    except IndexError:
        raise FormatError("a compressed block is cut short.", rule="snappy") from None
    if len(out) != size:
        raise FormatError(f"a compressed block does not unpack to the {size} bytes that it says.", rule="snappy")
    return bytes(out)


def _length(data: bytes) -> tuple[int, int]:
    """Return the length that a block begins with, and where what follows begins."""
    size = 0
    for at, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return size, at + 1
    raise FormatError("a compressed block has no length.", rule="snappy")


def _element(data: bytes, at: int, out: bytearray) -> int:
    """Carry out one literal or copy; returns where the next one is. Raises IndexError beyond the end."""
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
        raise FormatError("a compressed block copies from before its beginning.", rule="snappy")
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
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_TRAILER = 5
_PLAIN, _SNAPPY = 0, 1
_MANY = 1 << 16
"""Bytes of a table from which it is worth loading numpy to check its blocks."""


@dataclass(frozen=True)
class _Handle:
    """Where a block lies, its trailer left aside."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size + _TRAILER


class _Allowance:
    """What one table may still cost: bytes that compressed blocks unpack to, and characters of keys."""

    def __init__(self) -> None:
        self.inflated = limits.TABLE_INFLATED
        self.keys = limits.PATH_CHARACTERS


def is_table(file: File) -> bool:
    """Whether a file ends as a table does."""
    return file.size >= FOOTER and file.read(file.size - len(_MAGIC), len(_MAGIC)) == _MAGIC


def entries(file: File) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key and value in order; raises FormatError or UnsafeError where the table breaks a rule."""
    raw = file.read(0, file.size)
    others, index = _footer(raw)
    allowed = _Allowance()
    end, last = 0, None
    for bound, value in _block(raw, index, allowed):
        handle, after = _handle(value, 0)
        if after != len(value) or handle.offset != end or handle.end > others.offset:
            raise _fault("its blocks do not lie one behind the other in front of their index")
        if last is not None and last >= bound:
            raise _fault("its index is not in order")
        end, before = handle.end, last
        for key, content in _block(raw, handle, allowed):
            if last is not None and last >= key:
                raise _fault(f"its keys are not in order at {escape(key.decode('utf-8', 'replace'), 80)}")
            yield key, content
            last = key
        if last is before:
            raise _fault("it has a block that holds nothing")
        if last is not None and last > bound:
            raise _fault("its index contradicts its blocks")
        last = bound
    if others.offset != end or any(_block(raw, others, allowed)):
        raise _fault("it holds more than its index names")


def _fault(why: str) -> FormatError:
    return FormatError(f"{why}.", rule="table")


def _footer(raw: bytes) -> tuple[_Handle, _Handle]:
    """Return where the block lies that names others, which TensorFlow leaves empty, and behind it the index block."""
    footer = raw[-FOOTER:]
    if len(footer) < FOOTER or not footer.endswith(_MAGIC):
        raise _fault("it does not end as a table does: it is cut short, or is none")
    others, at = _handle(footer, 0)
    index, at = _handle(footer, at)
    if index.end != len(raw) - FOOTER or others.end != index.offset or footer[at : -len(_MAGIC)].strip(b"\0"):
        raise _fault("its footer names an index that is not there: it is cut short")
    return others, index


def _handle(data: bytes, at: int) -> tuple[_Handle, int]:
    try:
        offset, at = varint(data, at)
        size, at = varint(data, at)
    except ValueError as error:
        raise _fault(f"it names no block: {error}") from None
    return _Handle(offset, size), at


def _block(raw: bytes, handle: _Handle, allowed: _Allowance) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block whose checksum is right."""
    content = raw[handle.offset : handle.offset + handle.size]
    trailer = raw[handle.offset + handle.size : handle.end]
    if len(trailer) < _TRAILER:
        raise _fault("a block ends too early: it is cut short")
    short = SHORT if len(raw) < _MANY else SHORTEST
    if crc32c(trailer[:1], crc32c(content, short=short)) != unmasked(int.from_bytes(trailer[1:], "little")):
        raise FormatError(f"the block at {handle.offset} does not have the checksum it should.", rule="crc")
    if trailer[0] == _SNAPPY:
        content = unsnapped(content, allowed.inflated)
        allowed.inflated -= len(content)
    elif trailer[0] != _PLAIN:
        raise _fault(f"the block at {handle.offset} is compressed in way {trailer[0]}, which is not read")
    yield from _entries(content, allowed)


def _restarts(block: bytes) -> tuple[int, int]:
    """Return where the list of whole keys begins, of 32 bits each with their number behind it, and that number."""
    number = int.from_bytes(block[-4:], "little")
    if len(block) < 4 or not 0 < number <= (len(block) - 4) // 4:
        raise _fault("a block does not have the restart points that it says")
    return len(block) - 4 - 4 * number, number


def _entries(block: bytes, allowed: _Allowance) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block: bytes shared with the key before, bytes of its own, bytes of the value."""
    end, number = _restarts(block)
    key, at, seen = b"", 0, 0
    while at < end:
        restart = seen < number and at == int.from_bytes(block[end + 4 * seen : end + 4 * seen + 4], "little")
        try:
            shared, begin = varint(block, at)
            own, begin = varint(block, begin)
            size, begin = varint(block, begin)
        except ValueError as error:
            raise _fault(f"a block holds no entry at {at}: {error}") from None
        if shared > len(key) or own + size > end - begin or shared * restart or not (seen or restart):
            raise _fault(f"an entry at {at} of a block takes what is not there")
        if shared + own > limits.KEY_CHARACTERS or allowed.keys < shared + own:
            raise UnsafeError("its keys are longer than any that are read.", rule="key length")
        allowed.keys -= shared + own
        key = key[:shared] + block[begin : begin + own]
        yield key, block[begin + own : begin + own + size]
        at = begin + own + size
        seen += restart
    if end and seen != number:
        raise _fault("a block has a restart point where no entry begins")
