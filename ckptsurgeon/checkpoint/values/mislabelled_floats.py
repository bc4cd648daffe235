"""Finds matrices of float16 numbers whose dtype is given as bfloat16, and the other way round."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from ...util.text import listing
from .sampled_matrices import VALUES, MatrixSample

__all__ = ["MISLABELLED", "mislabelled_float_notes"]

MISLABELLED = "the dtype in the header is perhaps wrong"
FEWEST = 2
"""The fewest matrices for a note."""
DIFFERENT = 24
"""The fewest different magnitudes among the values of a matrix."""
USUAL = (1.5, 16.0)
"""The bounds of the ratio of the third quartile of magnitudes to the first; it is 3.6 for normally distributed values.

A float16 has three bits of its mantissa where a bfloat16 has the last bits of its exponent. So read as bfloat16, this
ratio gets about its eighth power (28,000), and bfloat16 read as float16 gets the eighth root (1.2).
"""
WIDE, NARROW = 500.0, 1.45
"""The smallest ratio of float16 numbers that are read as bfloat16, and the largest the other way round."""
SIZES = (1e-5, 2.0)
"""The bounds of the median magnitude of weights."""


def mislabelled_float_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if matrices of one dtype of 16 bits have values that are plausible only in the other dtype."""
    for dtype, other in (("bfloat16", "float16"), ("float16", "bfloat16")):
        keys = [one.key for one in sample if one.dtype == dtype and _is_mislabelled(one.raw, dtype, other)]
        if len(keys) >= FEWEST:
            yield (
                f"the values of {len(keys)} of {len(sample)} matrices that were looked at are those of weights only if "
                f"their {dtype} numbers are read as {other}: {MISLABELLED}: {listing(keys)}"
            )


def _is_mislabelled(raw: bytes, dtype: str, other: str) -> bool:
    codes = sorted(code & 0x7FFF for code in struct.unpack(f"<{VALUES}H", raw))  # in the order of magnitudes in both
    quartiles = [codes[VALUES * quarter // 4] for quarter in (1, 2, 3)]
    if not quartiles[0] or len({*codes}) < DIFFERENT:
        return False
    low, _, high = (_value(code, dtype) for code in quartiles)
    first, middle, third = (_value(code, other) for code in quartiles)
    is_odd = high >= WIDE * low if dtype == "bfloat16" else high <= NARROW * low
    return is_odd and SIZES[0] <= middle <= SIZES[1] and USUAL[0] * first <= third <= USUAL[1] * first


def _value(code: int, dtype: str) -> float:
    """Return the number that a code of 16 bits stands for."""
    wide = dtype == "bfloat16"
    (value,) = struct.unpack("<f" if wide else "<e", struct.pack("<I", code << 16) if wide else struct.pack("<H", code))
    return float(value)
