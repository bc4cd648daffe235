"""Computes the checksums of HDF5: lookup3 of its metadata, and Fletcher's of chunks.

Bob Jenkins, http://burtleburtle.net/bob/c/lookup3.c (``hashlittle``); H5checksum.c of the HDF5 library.
"""

from __future__ import annotations

import struct

__all__ = ["fletcher32", "lookup3"]

_ALL = 0xFFFFFFFF
_TWELVE = struct.Struct("<3I")
_STEP = 1 << 20
"""The number of words of a chunk that are summed at once."""


def lookup3(data: bytes) -> int:
    """Return the hash of ``data`` with the initial value 0."""
    a = b = c = (0xDEADBEEF + len(data)) & _ALL
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12
    for x, y, z in _TWELVE.iter_unpack(data[:last]):
        a, b, c = a + x, b + y, (c + z) & _ALL
        a = (a - c & _ALL) ^ (c << 4 & _ALL | c >> 28)
        c = c + b
        b = (b - a & _ALL) ^ (a << 6 & _ALL | a >> 26)
        a = a + c & _ALL
        c = (c - b & _ALL) ^ (b << 8 & _ALL | b >> 24)
        b = b + a & _ALL
        a = (a - c & _ALL) ^ (c << 16 & _ALL | c >> 16)
        c = c + b & _ALL
        b = (b - a & _ALL) ^ (a << 19 & _ALL | a >> 13)
        a = a + c & _ALL
        c = (c - b & _ALL) ^ (b << 4 & _ALL | b >> 28)
        b = b + a & _ALL
    x, y, z = _TWELVE.unpack(data[last:].ljust(12, b"\0"))
    return _final(a + x & _ALL, b + y & _ALL, c + z & _ALL)


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - (b << 14 & _ALL | b >> 18) & _ALL
    a = (a ^ c) - (c << 11 & _ALL | c >> 21) & _ALL
    b = (b ^ a) - (a << 25 & _ALL | a >> 7) & _ALL
    c = (c ^ b) - (b << 16 & _ALL | b >> 16) & _ALL
    a = (a ^ c) - (c << 4 & _ALL | c >> 28) & _ALL
    b = (b ^ a) - (a << 14 & _ALL | a >> 18) & _ALL
    return (c ^ b) - (b << 24 & _ALL | b >> 8) & _ALL


def fletcher32(data: bytes) -> int:
    """Return Fletcher's checksum of a chunk: two sums modulo 0xFFFF, each in 16 bits.

    As in the HDF5 library, a sum that is a multiple of 0xFFFF becomes 0xFFFF; only zero itself becomes 0.
    """
    import numpy as np

    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2")
    low = high = 0
    for begin in range(0, len(words), _STEP):
        piece = words[begin : begin + _STEP].astype("u8")
        weights = np.arange(len(piece), 0, -1, dtype="u8")
        high += low * len(piece) + int((piece * weights).sum())
        low += int(piece.sum())
    return _folded(high) << 16 | _folded(low)


def _folded(total: int) -> int:
    return (total % 0xFFFF or 0xFFFF) if total else 0
