"""Reads and writes protocol buffers: (field number, value) of each field.

https://protobuf.dev/programming-guides/encoding. Reading raises ValueError if the bytes are not a valid message.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["field", "field32", "fields", "signed", "varint", "varint_bytes"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer (a varint of at most 64 bits) at the offset ``at``, and the offset after the varint.

    Raises ValueError if the varint is not valid.
    """
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is truncated")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise ValueError("a number has over 64 bits")


def signed(value: int) -> int:
    """Return an unsigned 64-bit number as a signed number: 2**64 - 1 becomes -1."""
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of each field: numbers as unsigned integers, everything else as bytes.

    Raises ValueError if ``data`` is not a valid message.
    """
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
            raise ValueError("a field is truncated")
        raw = data[at : at + length]
        yield tag >> 3, raw if kind == _BYTES else int.from_bytes(raw, "little")
        at += length


def varint_bytes(value: int) -> bytes:
    """Return the bytes of an integer of 0 or more, encoded as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """Encode a field whose value is an integer or a byte string.

    Returns b"" for the integer 0: protobuf leaves out fields that have the default value.
    """
    if isinstance(value, bytes):
        return varint_bytes(number << 3 | _BYTES) + varint_bytes(len(value)) + value
    return varint_bytes(number << 3 | _VARINT) + varint_bytes(value) if value else b""


def field32(number: int, value: int) -> bytes:
    """Return the bytes of a field whose value is a fixed 32-bit number."""
    return varint_bytes(number << 3 | _FIXED32) + value.to_bytes(4, "little")
