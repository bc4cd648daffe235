"""Finds matrices whose values are nearly all shifted: they were decoded with wrong zero points, or with none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import isfinite, sqrt

from ...tensors.odd_scales.shifted import MOSTLY, SHIFT
from ...util.text import listing, percent
from .sampled_matrices import VALUES, MatrixSample

__all__ = ["SHIFTED_VALUES", "shifted_weight_notes"]

SHIFTED_VALUES = "perhaps they were decoded with wrong zero points"
FEWEST = 8
"""The fewest matrices for a note: by chance, the mean of 512 values may be 13 % of their root mean square."""


def shifted_weight_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if the means of most matrices are far from 0, in the same direction.

    If 4-bit zero points are wrong by one, all weights are shifted by about a third of their usual size. If codes are
    decoded without zero points, no weight is negative. In trained networks, most matrices have a mean near 0.
    """
    means = {one.key: _mean(one.numbers()) for one in sample}
    for is_up, way in ((True, "above"), (False, "below")):
        keys = [key for key, mean in means.items() if abs(mean) > SHIFT and (mean > 0) is is_up]
        if len(means) >= FEWEST and len(keys) > MOSTLY * len(means):
            yield (
                f"the values of {len(keys)} of {len(means)} matrices that were looked at have a mean {way} 0 by over "
                f"{percent(SHIFT)} of their size: {SHIFTED_VALUES}: {listing(keys)}"
            )


def _mean(values: Collection[float]) -> float:
    """Return the mean of values, relative to their root mean square; 0 for zeros and values that are not finite."""
    size = sqrt(sum(one * one for one in values) / VALUES)
    return sum(values) / VALUES / size if size and isfinite(size) else 0.0
