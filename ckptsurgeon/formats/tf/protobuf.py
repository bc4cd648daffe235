"""Reads and writes protocol buffers as far as needed here: (field number, value) of each field, in order.

https://protobuf.dev/programming-guides/encoding. Reading raises ValueError for bytes that are not a message.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["field", "field32", "fields", "signed", "varint", "varint_bytes"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number (a varint of at most 64 bits) at the offset ``at``, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise ValueError("a number has over 64 bits")


def signed(value: int) -> int:
    """Return an unsigned number of 64 bits as a signed one."""
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of each field: numbers as unsigned integers, everything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = varint(data, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if length > len(data) - at:
            raise ValueError("a field is cut short")
        raw = data[at : at + length]
        yield tag >> 3, raw if kind == _BYTES else int.from_bytes(raw, "little")
        at += length


def varint_bytes(value: int) -> bytes:
    """Return a number from 0 on as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """Return the bytes of a field with a number or a byte string; b"" for the number 0, which a missing field means."""
    if isinstance(value, bytes):
        return varint_bytes(number << 3 | _BYTES) + varint_bytes(len(value)) + value
    return varint_bytes(number << 3 | _VARINT) + varint_bytes(value) if value else b""


def field32(number: int, value: int) -> bytes:
    """Return the bytes of a field whose value has 32 bits."""
    return varint_bytes(number << 3 | _FIXED32) + value.to_bytes(4, "little")
