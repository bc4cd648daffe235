"""Counts the negative scales of integer codes, and tells whether a quantiser may have chosen their signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..ops.regions import Array
from ._scale_tests import LARGE_SHARE, should_be_mixed

__all__ = ["are_chosen", "count_negative"]

OFFSETS = ("zero", "shift")
"""The roles of zero points, and of numbers that are added to weights."""
TIMES = 2
"""Signs may be chosen if the lowest code is over this many times as frequent as the highest code.

If a quantiser chooses signs, the lowest code is the one of the largest value of each group. Otherwise, the lowest and
the highest code are equally frequent.
"""


def count_negative(scale: Array) -> int:
    """Return how many scales are negative, without scales far smaller than the median magnitude (``LARGE_SHARE``)."""
    below = scale[scale < 0]
    if not below.size:
        return 0
    return int(np.count_nonzero(-below >= LARGE_SHARE * np.median(np.abs(scale))))


def are_chosen(arrays: Mapping[str, Array], decode: Callable[[Mapping[str, Array]], Array]) -> bool:
    """Return whether a quantiser may have chosen the signs of the scales in ``arrays``, judged by their codes.

    Returns False if zero points differ from each other: quantisers with such zero points have only positive scales.
    Returns True if nearly all codes have one sign, or if the lowest code is far more frequent than the highest: for
    such weights, a quantiser chooses the same sign for most scales.
    """
    offsets = (arrays[role].reshape(-1) for role in OFFSETS if role in arrays)
    if any((one != one[:1]).any() for one in offsets):  # not ptp: a difference of two int32 may overflow
        return False
    codes = decode({role: one.copy() for role, one in arrays.items()} | {"scale": np.ones_like(arrays["scale"])})
    if not should_be_mixed(codes):
        return True
    lowest, highest = (int(np.count_nonzero(codes == end)) for end in (codes.min(), codes.max()))
    return lowest > TIMES * highest
