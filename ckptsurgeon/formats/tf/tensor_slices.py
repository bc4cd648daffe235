"""Partitioned variables of TensorFlow: under which key a slice lies, and the tensor that all slices make up.

The key is in an order-preserving code (tensorflow/core/lib/strings/ordered_code.h): a zero, the name, the number of
dimensions, then start and length of each (``EncodeTensorNameSlice``).
"""

from __future__ import annotations

import re

from ...errors import FormatError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..base.pieces import Piece, assembled
from .bundle import DTYPES, Entry, Slice

__all__ = ["slice_key", "whole_of"]

_ESCAPED = re.compile(rb"[\x00\xff]")
_ESCAPES = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}


def slice_key(name: bytes, part: Slice) -> bytes:
    """Return the key under which a slice of a tensor lies."""
    text = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], name) + b"\x00\x01"
    numbers = b"".join(_signed(start) + _signed(length) for start, length in part)
    return _unsigned(0) + text + _unsigned(len(part)) + numbers


def _unsigned(value: int) -> bytes:
    """Return a number behind the number of its bytes."""
    size = -(-value.bit_length() // 8)
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """Return a number of 64 bits in as few bytes as hold it, each taking a leading bit for the length."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    head = ((1 << size) - 1) << 7 * size
    plain = value & (1 << 8 * size) - 1
    return (plain ^ head).to_bytes(size, "big")


def whole_of(name: str, entry: Entry, parts: list[TensorInfo]) -> TensorInfo:
    """Return the tensor of a partitioned variable; raises FormatError where its slices leave a hole or overlap."""
    dtype = DTYPES[entry.dtype]
    pieces = []
    for part, info in zip(entry.slices, parts, strict=True):
        if len(part) != len(entry.shape):
            raise FormatError(f"a slice of {escape(name)} has {len(part)} dimensions.", rule="slice")
        sizes = tuple(full if length == -1 else length for (_, length), full in zip(part, entry.shape, strict=True))
        if info.dtype != dtype or info.shape != sizes:
            raise FormatError(
                f"a slice of {escape(name)} is {info.dtype} {info.shape}, said to be {dtype} {sizes}.", rule="slice"
            )
        pieces.append(Piece(tuple(start for start, _ in part), info))
    return assembled(name, dtype, entry.shape, pieces)
