"""GGUF files made byte by byte, sound ones and others."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

__all__ = ["ARRAY", "STRING", "UINT32", "array", "gguf", "tensor_info", "text"]

UINT32, STRING, ARRAY = 4, 8, 9


def text(value: str | bytes) -> bytes:
    """A text with its length in front."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, number: int, values: bytes) -> bytes:
    """The value of an array: its type, its length, and its values as they are stored."""
    return struct.pack("<IQ", kind, number) + values


def tensor_info(name: str | bytes, sizes: Sequence[int], kind: int, offset: int) -> bytes:
    """The header of a tensor; ``sizes`` are in the order of the file, the last dimension first."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf(
    infos: Sequence[bytes] = (),
    entries: Mapping[str, tuple[int, bytes]] | Sequence[tuple[str, tuple[int, bytes]]] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file of these headers of tensors, these entries, and these bytes of tensors."""
    pairs = list(entries.items()) if isinstance(entries, Mapping) else list(entries)
    tensors, number = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, number)
    head += b"".join(text(key) + struct.pack("<I", kind) + raw for key, (kind, raw) in pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data
