"""msgpack files made value by value, sound ones and others."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["array", "extension", "packed"]


class Raw(bytes):
    """Bytes that are a value already."""


def packed(value: Any) -> Raw:
    """A value of plain data as msgpack; ``Raw`` bytes as they are."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return Raw(struct.pack(">BI", 0xDF, len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return Raw(struct.pack(">BH", 0xDC, len(value)) + b"".join(map(packed, value)))
    if isinstance(value, str):
        return Raw(struct.pack(">BB", 0xD9, len(value.encode())) + value.encode() if len(value) < 256 else
                   struct.pack(">BI", 0xDB, len(value)) + value.encode())  # fmt: skip
    if isinstance(value, bytes):
        return Raw(struct.pack(">BI", 0xC6, len(value)) + value)
    if value is None or isinstance(value, bool):
        return Raw({None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value])
    return Raw(struct.pack(">Bq", 0xD3, value) if isinstance(value, int) else struct.pack(">Bd", 0xCB, value))


def extension(kind: int, content: bytes) -> Raw:
    """An extension of a type."""
    return Raw(struct.pack(">BIb", 0xC9, len(content), kind) + content)


def array(shape: Sequence[Any], dtype: Any, data: Any, kind: int = 1) -> Raw:
    """An array as Flax writes it."""
    return extension(kind, packed([list(shape), dtype, data]))
