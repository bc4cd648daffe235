"""Converts float16 to float32 and back, with the same results as NumPy, but two to three times as fast.

NumPy converts one value after the other. This module shifts the bits of whole arrays, which is correct for numbers that
are normal in float16. All other numbers (zeros, subnormal and infinite numbers, NaN) are left to NumPy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["from_half", "to_half"]

Array: TypeAlias = npt.NDArray[Any]

SMALL = 1 << 12
"""Arrays with fewer values than this are converted by NumPy: the overhead of many calls would exceed the gain."""
SHARE = 16
"""If more than one in this many values is not normal, NumPy converts all values."""
EXPONENT = 112 << 23
"""The difference between the exponent biases of float32 and float16, shifted to the exponent bits of a float32."""


def from_half(values: Array) -> Array:
    """Return float16 values as float32."""
    flat = np.ascontiguousarray(values, "<f2").reshape(-1)
    if flat.size < SMALL:
        return values.astype("<f4")
    odd = flat.view("<u2") & np.uint16(0x7C00)  # the exponent bits: 0 or 0x7C00 if the number is not normal
    odd += np.uint16(0x0400)
    odd &= np.uint16(0x7800)
    at = np.flatnonzero(odd == 0)
    if at.size * SHARE > flat.size:
        return values.astype("<f4")
    signed: Array = flat.view("<i2").astype("<i4")
    signed <<= np.int32(13)
    bits = signed.view("<u4")
    bits &= np.uint32(0x8FFF_E000)
    bits += np.uint32(EXPONENT)
    made = bits.view("<f4")
    made[at] = flat[at].astype("<f4")
    return made.reshape(values.shape)


def to_half(values: Array) -> Array:
    """Return float32 values rounded to float16, ties to even."""
    flat = np.ascontiguousarray(values, "<f4").reshape(-1)
    if flat.size < SMALL:
        return values.astype("<f2")
    bits = flat.view("<u4")
    doubled = bits << np.uint32(1)  # without the sign
    doubled -= np.uint32(LEAST << 1)
    at = np.flatnonzero(doubled >= np.uint32((BEYOND - LEAST) << 1))
    if at.size * SHARE > flat.size:
        return values.astype("<f2")
    wide = bits >> np.uint32(13)
    wide &= np.uint32(1)
    wide += np.uint32((1 << 32) + 0x0FFF - EXPONENT)
    wide += bits
    wide >>= np.uint32(13)
    sign = wide >> np.uint32(3)  # from bit 18 to bit 15
    sign &= np.uint32(0x8000)
    wide |= sign
    made: Array = wide.astype("<u2").view("<f2")
    made[at] = flat[at].astype("<f2")
    return made.reshape(values.shape)


LEAST, BEYOND = 113 << 23, 0x477F_E000
"""The bits of the float32 numbers 2**-14, the smallest normal float16, and 65504, the largest.

Values above the largest may become infinite.
"""
