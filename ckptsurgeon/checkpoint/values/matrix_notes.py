"""Makes notes on sampled values of matrices: their dtype or their zero points are probably wrong."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from math import isfinite, sqrt

from ...tensors.odd_scales.shifted import MOSTLY, SHIFT
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import listing, percent
from .samples import VALUES, MatrixSample

__all__ = [
    "MISLABELLED",
    "SHIFTED_VALUES",
    "mislabelled_float_notes",
    "shifted_weight_notes",
]

MISLABELLED = "the dtype in the header is perhaps wrong"
FEWEST_MISLABELLED = 2
"""There is a note only if at least this many matrices are mislabelled."""
DIFFERENT = 24
"""A matrix with fewer different magnitudes than this gets no note."""
USUAL = (1.5, 16.0)
"""In weights, the third quartile of the magnitudes, divided by the first, is between these bounds.

It is 3.6 for normally distributed values. A float16 has three bits of its mantissa where a bfloat16 has the last bits
of its exponent. So if float16 is read as bfloat16, this ratio becomes about its eighth power (28,000); if bfloat16 is
read as float16, it becomes the eighth root (1.2).
"""
WIDE, NARROW = 500.0, 1.45
"""The smallest ratio of quartiles of float16 numbers read as bfloat16, and the largest of bfloat16 read as float16."""
SIZES = (1e-5, 2.0)
"""In weights, the median magnitude is between these bounds."""


@notes_of(NoteKind.DTYPE_IN_HEADER)
def mislabelled_float_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if float16 matrices have plausible values only if read as bfloat16, or the other way round."""
    for dtype, other in (("bfloat16", "float16"), ("float16", "bfloat16")):
        keys = [one.key for one in sample if one.dtype == dtype and _is_mislabelled(one.raw, dtype, other)]
        if len(keys) >= FEWEST_MISLABELLED:
            yield (
                f"the values of {len(keys)} of {len(sample)} matrices that were looked at look like weights only if "
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
    """Return the number that a code of 16 bits represents."""
    wide = dtype == "bfloat16"
    (value,) = struct.unpack("<f" if wide else "<e", struct.pack("<I", code << 16) if wide else struct.pack("<H", code))
    return float(value)


SHIFTED_VALUES = "perhaps they were decoded with wrong zero points"
FEWEST_SHIFTED = 8
"""A note needs at least this many matrices: by chance, the mean of 512 values may be 13 % of their root mean square."""


@notes_of(NoteKind.WRONG_ZERO_POINTS)
def shifted_weight_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if the means of most matrices are far from 0, in the same direction.

    If 4-bit zero points are wrong by one, all weights are shifted by about a third of their usual size. If codes are
    decoded without zero points, no weight is negative. In trained networks, most matrices have a mean near 0.
    """
    means = {one.key: _mean(one.numbers()) for one in sample}
    for is_up, way in ((True, "above"), (False, "below")):
        keys = [key for key, mean in means.items() if abs(mean) > SHIFT and (mean > 0) is is_up]
        if len(means) >= FEWEST_SHIFTED and len(keys) > MOSTLY * len(means):
            yield (
                f"the values of {len(keys)} of {len(means)} matrices that were looked at have a mean {way} 0 by over "
                f"{percent(SHIFT)} of their root mean square: {SHIFTED_VALUES}: {listing(keys)}"
            )


def _mean(values: Collection[float]) -> float:
    """Return the mean of values divided by their root mean square; 0 if this is not finite or if all values are 0."""
    size = sqrt(sum(one * one for one in values) / VALUES)
    return sum(values) / VALUES / size if size and isfinite(size) else 0.0
