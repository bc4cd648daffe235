"""Finds matrices of 8-bit floats that are codes of quantised weights, but have no scales."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from math import inf
from typing import NamedTuple

from ...util.text import listing
from .sampled_matrices import VALUES, MatrixSample

__all__ = ["EIGHT_BITS", "lost_scale_notes"]


class _Format(NamedTuple):
    """The number of bits of the mantissa, and what is subtracted from the exponent."""

    mantissa: int
    bias: int


EIGHT_BITS = {
    "float8_e4m3fn": _Format(3, 7), "float8_e4m3fnuz": _Format(3, 8),
    "float8_e5m2": _Format(2, 15), "float8_e5m2fnuz": _Format(2, 16),
}  # fmt: skip
FEWEST = 2
"""The fewest matrices of codes for a note."""
MEDIAN = 4.0
"""The smallest median magnitude of codes.

Scales are chosen so that the largest code of a tensor, a channel or a block is the largest number of the type, at least
240: the median of normally distributed codes is then over 30. The median of plain weights is below 0.1.
"""


def lost_scale_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if matrices of 8-bit floats have values as large as codes; none of them belongs to any scales."""
    found = [one for one in sample if one.dtype in EIGHT_BITS and _median(one) > MEDIAN]
    if len(found) >= FEWEST:
        kinds = listing(list(dict.fromkeys(one.dtype for one in found)), where="")
        yield (
            f"the values of {len(found)} of {len(sample)} matrices of 8-bit floats that were looked at are as large as "
            f"codes (half of them are above {MEDIAN:g}), but {kinds} without scales are plain numbers: perhaps their "
            f"scales were lost: {listing([one.key for one in found])}"
        )


def _median(one: MatrixSample) -> float:
    """Return the median magnitude; infinite numbers and NaN count as the largest."""
    magnitude = _magnitudes(one.dtype)
    return sorted(magnitude[code] for code in one.raw)[VALUES // 2]


@cache
def _magnitudes(dtype: str) -> tuple[float, ...]:
    """Return the magnitude of the number that each byte stands for."""
    mantissa, bias = EIGHT_BITS[dtype]
    one, found = 1 << mantissa, []
    for code in range(128):
        exponent, rest = divmod(code, one)
        found.append((one + rest) / one * 2.0 ** (exponent - bias) if exponent else rest / one * 2.0 ** (1 - bias))
    return (*found, *found) if not dtype.endswith("fnuz") else (*found, inf, *found[1:])
