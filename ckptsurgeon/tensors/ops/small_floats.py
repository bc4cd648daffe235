"""Converts 8-bit floats to float32, by a table of the 256 values, and back, by integer arithmetic, without torch.

The types are defined in https://arxiv.org/abs/2209.05433 (e4m3fn, e5m2), https://arxiv.org/abs/2206.02915 (fnuz) and
the OCP microscaling formats (e8m0fnu). Values that are too large are converted as in torch 2.13: to the largest value
in e4m3fn, to infinity in e5m2, to NaN in the other types.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SMALL_FLOATS", "all_finite", "from_small", "power_of_bits", "put_bits", "to_small"]

Array: TypeAlias = npt.NDArray[Any]

_POWERS = "float8_e8m0fnu"


@dataclass(frozen=True)
class _FloatBits:
    """The layout of an 8-bit float: fraction bits, bias of the exponent, code of the largest finite value.

    ``beyond`` is the code for values that are too large, ``nan`` the code of NaN, ``infinity`` the code of infinity (0
    if the type has no infinity). If ``unsigned_zero`` is true, there is no -0: its bits are the code of NaN.
    """

    fraction: int
    bias: int
    largest: int
    beyond: int
    nan: int
    infinity: int = 0
    unsigned_zero: bool = False


_LAYOUTS = {
    "float8_e4m3fn": _FloatBits(3, 7, 0x7E, 0x7E, 0x7F),
    "float8_e5m2": _FloatBits(2, 15, 0x7B, 0x7C, 0x7F, infinity=0x7C),
    "float8_e4m3fnuz": _FloatBits(3, 8, 0x7F, 0x80, 0x80, unsigned_zero=True),
    "float8_e5m2fnuz": _FloatBits(2, 16, 0x7F, 0x80, 0x80, unsigned_zero=True),
}
FEW = 1 << 15
"""Up to this many codes are looked up one by one, since the table of pairs (512 KiB) is slow to read into the cache."""
SMALL_FLOATS = frozenset({*_LAYOUTS, _POWERS})


def from_small(codes: Array, dtype: str, out: Array | None = None) -> Array:
    """Return the float32 values of 8-bit floats, which are given as codes (uint8).

    If ``out`` is given, a float32 array of the same size, and the number of codes is even, the values are written to
    it.
    """
    if codes.size % 2 == 0 and codes.flags.c_contiguous and codes.ndim and (out is None or codes.size > FEW):
        into = out.view("<u8") if out is not None else None
        pairs: Array = np.take(_pairs(dtype), codes.reshape(-1).view("<u2"), mode="clip", out=into)
        return pairs.view("<f4").reshape(codes.shape)
    values: Array = np.take(
        _table(dtype), codes, mode="clip", out=out
    )  # no code is beyond the table: "clip" saves a check
    return values


@lru_cache
def _pairs(dtype: str) -> Array:
    """Return a table with an entry for each pair of codes: the float32 values of both, as one 64-bit number.

    With this table, two codes need only one look-up. The index of an entry is the first code plus 256 times the second.
    """
    table, pairs = _table(dtype), np.arange(1 << 16)
    both: Array = np.stack([table[pairs & 0xFF], table[pairs >> 8]], -1).view("<u8")
    return both.reshape(-1)


@lru_cache
def _table(dtype: str) -> Array:
    codes = np.arange(256)
    if dtype == _POWERS:
        values = np.ldexp(np.float32(1), np.minimum(codes, 254) - 127)
        return _with_nan(values, codes == 255, _SIGNALLING)
    layout = _LAYOUTS[dtype]
    magnitude = codes & 0x7F
    exponent, fraction = magnitude >> layout.fraction, magnitude & ((1 << layout.fraction) - 1)
    ones = np.where(exponent > 0, 1 << layout.fraction, 0) + fraction
    values = np.ldexp(ones.astype("<f4"), np.maximum(exponent, 1) - layout.bias - layout.fraction)
    if layout.infinity:
        values[magnitude == layout.infinity] = np.inf
    values = np.where(codes >= 0x80, -values, values).astype("<f4")
    if layout.unsigned_zero:
        return _with_nan(values, codes == layout.nan, _SIGNALLING)
    bits = (codes & 0x80) << 24 | _QUIET | fraction << (23 - layout.fraction)
    return _with_nan(values, magnitude > max(layout.largest, layout.infinity), bits)


_QUIET, _SIGNALLING = 0x7FC0_0000, 0x7F80_0001
"""The bits of the float32 NaN that torch makes: quiet, or signalling if the 8-bit type has only one NaN."""


def _with_nan(values: Array, where: Array, bits: Array | int) -> Array:
    raw = np.where(where, bits, values.view("<u4")).astype("<u4")
    raw.setflags(write=False)
    found: Array = raw.view("<f4")
    return found


def power_of_bits(dtype: str) -> int | None:
    """Return n, if ``put_bits`` makes floats that are the values times 2**-n; None for other dtypes."""
    return 127 - _LAYOUTS[dtype].bias if dtype in _LAYOUTS else None


def put_bits(codes: Array, dtype: str, out: Array) -> None:
    """Write the bits of 8-bit floats to ``out`` (int32), at the places that they have in a float32.

    As float32, ``out`` then has the values times a power of two (``power_of_bits``), exactly; for codes of numbers
    that are not finite, it has wrong values.
    """
    shift = 23 - _LAYOUTS[dtype].fraction
    np.copyto(out, codes.view("i1"))  # extends the sign to the highest bit
    np.left_shift(out, np.int32(shift), out=out)
    np.bitwise_and(out, np.int32((0x7F << shift) - (1 << 31)), out=out)


def all_finite(codes: Array, dtype: str) -> bool:
    """Return whether no code is NaN or infinite."""
    layout = _LAYOUTS[dtype]
    if layout.unsigned_zero:
        return not codes.size or int(codes.view("i1").min()) != -0x80
    return not codes.size or bool(codes.view("i1").max() <= layout.largest and codes.max() <= layout.largest | 0x80)


def to_small(values: Array, dtype: str) -> Array:
    """Return float32 values as the codes of 8-bit floats: rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    codes = _to_powers(bits) if dtype == _POWERS else _rounded(bits, _LAYOUTS[dtype])
    return codes.reshape(values.shape)


def _rounded(bits: Array, layout: _FloatBits) -> Array:
    magnitude = bits & np.uint32(0x7FFF_FFFF)
    shift = 23 - layout.fraction
    rounded = magnitude >> np.uint32(shift)
    rounded &= np.uint32(1)  # 1 if the last bit that is kept is odd; in place, as few arrays fit into a core's cache
    rounded += np.uint32((1 << (shift - 1)) - 1)
    rounded += magnitude
    rounded >>= np.uint32(shift)
    codes = rounded.view("<i4")
    codes -= (127 - layout.bias) << layout.fraction
    small = magnitude < np.uint32((128 - layout.bias) << 23)  # below the first value with a leading one
    if small.any():
        steps = np.ldexp(magnitude[small].view("<f4"), layout.bias - 1 + layout.fraction)
        codes[small] = np.rint(steps).astype("<i4")
    codes[codes > layout.largest] = layout.beyond
    codes[magnitude > np.uint32(0x7F80_0000)] = layout.nan
    sign = (bits >> np.uint32(24)).astype("<i4") & 0x80
    if layout.unsigned_zero:
        sign[(codes == 0) | (codes == layout.nan)] = 0
    codes |= sign
    return codes.astype("u1")


def _to_powers(bits: Array) -> Array:
    """Return the codes of the powers of two that are nearest to float32 values; the sign is lost, as in torch.

    ``bits`` are the bits of the values, as uint32.
    """
    exponent = ((bits >> np.uint32(23)) & np.uint32(0xFF)).astype("<i4")
    rest = bits & np.uint32(0x7F_FFFF)
    half = np.uint32(0x40_0000)
    up = (rest > half) | ((rest == half) & (exponent > 0))
    codes = np.where(exponent == 0xFF, 0xFF, exponent + up)
    return codes.astype("u1")
