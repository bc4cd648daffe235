"""Files of CTranslate2 made byte by byte, sound ones and others."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["FLOAT32", "INT8", "INT16", "INT32", "model", "text", "variable"]

FLOAT32, INT8, INT16, INT32 = 0, 1, 2, 3


def text(value: str | bytes) -> bytes:
    """A text with its length in front, which counts the zero at its end."""
    raw = value if isinstance(value, bytes) else value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str | bytes, sizes: Sequence[int], kind: int, data: bytes, *, nbytes: int | None = None) -> bytes:
    """A variable; ``nbytes`` is the size that it claims, if it is not that of the data."""
    said = len(data) if nbytes is None else nbytes
    return text(name) + struct.pack(f"<B{len(sizes)}IBI", len(sizes), *sizes, kind, said) + data


def model(
    variables: Sequence[bytes] = (),
    aliases: Sequence[tuple[str, str]] = (),
    *,
    version: int = 6,
    spec: str | bytes = "WhisperSpec",
    number: int | None = None,
    aliased: int | None = None,
) -> bytes:
    """A file of these variables and aliases; ``number`` and ``aliased`` are the numbers of them that it claims."""
    head = struct.pack("<I", version) + text(spec) + struct.pack("<I", 3)
    head += struct.pack("<I", len(variables) if number is None else number) + b"".join(variables)
    head += struct.pack("<I", len(aliases) if aliased is None else aliased)
    return head + b"".join(text(alias) + text(key) for alias, key in aliases)
