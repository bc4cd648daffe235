"""Model files of whisper.cpp made byte by byte, sound ones and others."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["SIZES", "model", "tensor"]

MOST = 1_000_000

SIZES = (40, 8, 32, 2, 1, 12, 32, 2, 1, 8)
"""Hyper-parameters: the third and the seventh are the widths of encoder and decoder, the last one is ``n_mels``."""


def tensor(name: str | bytes, sizes: Sequence[int], kind: int, data: bytes, *, length: int | None = None) -> bytes:
    """A tensor behind its header; ``sizes`` are in the order of the file, the last dimension first."""
    raw = name if isinstance(name, bytes) else name.encode()
    said = len(raw) if length is None else length
    return struct.pack(f"<3i{len(sizes)}i", len(sizes), said, kind, *sizes) + raw + data


def model(
    *tensors: bytes,
    sizes: Sequence[int] = SIZES,
    ftype: int = 1,
    filters: tuple[int, int] = (8, 5),
    tokens: Sequence[bytes] = (b"!", b"", b" the"),
    number: int | None = None,
    order: str = "<",
) -> bytes:
    """A file of these hyper-parameters, filters of zeros, tokens (``number`` is their stated number) and tensors.

    Of filters with more than a million numbers, only that many are there.
    """
    head = struct.pack(f"{order}12i", 0x67676D6C, *sizes, ftype) + struct.pack(f"{order}2i", *filters)
    words = b"".join(struct.pack(f"{order}i", len(token)) + token for token in tokens)
    count = len(tokens) if number is None else number
    return (
        head
        + bytes(4 * min(MOST, max(0, filters[0] * filters[1])))
        + struct.pack(f"{order}I", count)
        + words
        + b"".join(tensors)
    )
