"""Snappy's block format, which LevelDB's tables may be compressed with (google/snappy, format_description.txt)."""

from __future__ import annotations

from ...errors import FormatError

__all__ = ["unsnapped"]

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
