"""Tells from scales and codes whether scales have the wrong sign, are inverse or 0, or were swapped with biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..odd_scales.kinds import EXCHANGED, NARROW, OPPOSED
from ..ops.regions import Array

__all__ = [
    "are_exchanged",
    "are_negative",
    "have_many_values",
    "lean_of",
    "odd_biases",
    "rise_with_scales",
    "should_be_mixed",
    "steps_off",
]

CERTAIN = 64
"""If at least this many scales are all negative, this is not by chance.

AutoRound and llama.cpp choose the sign of each scale: the value of the largest magnitude gets the code of the largest
magnitude, which is negative. So about half of their scales are negative.
"""
MIXED = 1 / 3
"""If more than this share of the values has the rarer of the two signs, scales cannot all be negative.

Then a quantiser makes either none or about half of them negative.
"""
DIFFERENT = 3
"""If codes have at least this many different values other than 0, they do not all represent the number 0.

Only one code represents the number 0, or two codes because of rounding.
"""
RISES = 0.1
"""Scales are inverse if blocks with larger scales have larger codes, too.

This is measured as the slope of log(codes) over log(scales), which must be at least ``RISES``. A scale is the largest
magnitude of its block, divided by a constant. So in a block with an outlier, the scale is larger and the other codes
are smaller: the slope is negative (-0.9 to -0.03 in all matrices of MiniLM). That of inverse scales is positive.
"""
CLIPPED, AT_TOP = 0.05, 0.99
"""Scales are not judged if more than the share ``CLIPPED`` of codes is above ``AT_TOP`` times the largest code.

Then weights were perhaps clipped: in a block of clipped weights with a larger scale, the other codes are larger too,
although the scale is right.
"""
VARIES = 1e-6
"""The slope is computed only if the variance of the logarithm of scales is at least this number."""
LOOKED_AT, SCALES = 1 << 16, 16
"""About how many values are compared with their codes, and the fewest different scales that give a slope."""
SMALLEST = 1e-5
"""MLX has no scales below 1e-7: so scales may be larger than biases if both are smaller than this number."""
SPAN, MOST = 0.3, 0.9
"""Scales are too small if the weights of most groups (more than the share ``MOST``) hardly differ.

They hardly differ if their range is less than the share ``SPAN`` of the largest weight.
"""
VARIED = 0.05
"""``SPAN`` is used only if the standard deviation of biases is more than this share of their mean.

Otherwise, the weights may be nearly constant, like the weights of norms.
"""
RUN, RUNS = 32, 64
"""The number of weights in a run (a group or a part of it), and about how many runs are read of a part of a matrix."""
MANY_RUNS = 256
"""About how many runs are needed to see a shift by one step: by chance, a single run is shifted by half a step."""
SAME, EVEN = 1e-3, 0.05
"""Weights count as equal if they differ by less than the share ``SAME`` of the largest weight.

They count as multiples of a step if each is within ``EVEN`` steps of a multiple.
"""
FEWEST_RUNS = 16
"""No median is computed of fewer runs; runs of equal weights do not count."""
OPPOSING = 1 / 16
"""If more than this share of scales is negative, MLX chose their signs: then each bias has the other sign."""
FEW = 4
"""If fewer scales than this are compared with biases, nothing is reported."""
LARGE_SHARE = 1 / 4
"""Scales below this share of the median magnitude may have any sign: training of scales may move them past 0."""


def are_negative(scale: Array) -> bool:
    """Return whether no scale is positive, and more are negative than can be by chance."""
    return scale.size >= CERTAIN and not scale.max() > 0 and int(np.count_nonzero(scale < 0)) >= CERTAIN


def should_be_mixed(values: Array) -> bool:
    """Return whether positive and negative values are both frequent, with several different codes.

    For such values, a quantiser makes either no scale negative, or about half of them. For other values, all scales may
    be negative on purpose: AutoRound makes such scales if most values have one sign, and if the largest and the
    smallest value of most blocks have the same magnitude, as in ternary weights.
    """
    below, above = int(np.count_nonzero(values < 0)), int(np.count_nonzero(values > 0))
    return min(below, above) > MIXED * (below + above) and have_many_values(values)


def have_many_values(codes: Array) -> bool:
    """Return whether there are several different codes other than 0."""
    return len(np.unique(codes[codes != 0])) >= DIFFERENT


def odd_biases(bits: int, scale: Array, bias: Array) -> Iterator[str]:
    """Yield the kinds of implausible scales of MLX's affine codes: ``EXCHANGED``, ``OPPOSED`` or ``NARROW``.

    MLX takes as the bias of a group the end of its range that is farther from 0. The bias is a multiple of the scale,
    with the other sign, so its magnitude is at least that of the scale. Older versions of MLX have only positive
    scales; their biases are the smallest values of the groups. (mlx/backend/cpu/quantized.cpp, ``quantize``.)
    """
    some = (scale != 0) & (bias != 0)
    scale, bias = scale[some].astype("<f8"), bias[some].astype("<f8")
    if scale.size < FEW or bits < 2:
        return
    if are_exchanged(float(scale.min()), float(np.mean(scale * scale)), float(np.mean(bias * bias))):
        yield EXCHANGED
    if _have_same_signs(scale, bias):
        yield OPPOSED
    elif scale.size >= CERTAIN and _are_narrow(bits, abs(scale), abs(bias)):
        yield NARROW


def _have_same_signs(scale: Array, bias: Array) -> bool:
    """Return whether a scale and its bias have the same sign, which MLX never writes.

    There is an exception: older versions of MLX write positive scales and positive biases for groups of positive
    weights. So two positive numbers count only if some scales are negative, which shows that a newer version wrote
    them.
    """
    is_large = (abs(scale) >= LARGE_SHARE * np.median(abs(scale))) & (abs(bias) >= abs(scale))
    below = scale < 0
    if bool((is_large & below & (bias < 0)).any()):
        return True
    is_chosen = np.count_nonzero(below) > OPPOSING * scale.size
    return bool(is_chosen and (is_large & ~below & (bias > 0)).any())


def _are_narrow(bits: int, scale: Array, bias: Array) -> bool:
    """Return whether the weights within most groups hardly differ from each other, although the groups differ."""
    if not np.std(bias) > VARIED * np.mean(bias):
        return False
    return bool(np.mean(scale * (2**bits - 1) < SPAN * bias) > MOST)


def are_exchanged(smallest: float, scales: float, biases: float) -> bool:
    """Return whether MLX's scales and biases were swapped: scales are larger than biases, and some are negative.

    ``smallest`` is the smallest scale; ``scales`` and ``biases`` are the mean squares of all scales and biases.
    """
    return smallest < 0 and scales > max(biases, SMALLEST**2)


def lean_of(values: Array) -> float:
    """Return the median of |mean| / deviation over runs of weights; 0 if there are too few runs.

    A run is ``RUN`` adjacent weights of a row. At most twice ``RUNS`` runs are read, spread over all rows and columns.
    The distance between two codes is first subtracted from each |mean|, because of outliers. An outlier makes the scale
    of its group so large that all other weights get the code nearest to 0. If this code does not represent exactly 0,
    the mean moves.
    """
    rows, in_row = values.reshape(-1, values.shape[-1]), values.shape[-1] // RUN
    at = np.arange(0, len(rows) * in_row, len(rows) * in_row // RUNS | 1)
    if len(at) < FEWEST_RUNS:
        return 0.0
    row, column = np.divmod(at, in_row)
    runs = rows[row[:, None], column[:, None] * RUN + np.arange(RUN)].astype("<f8")
    runs = np.sort(runs[np.isfinite(runs).all(1)], 1)
    gaps = np.diff(runs, axis=1)
    steps = np.where(gaps > 0, gaps, np.inf).min(1, initial=np.inf)
    runs, steps = runs[np.isfinite(steps)], steps[np.isfinite(steps)]
    if len(runs) < FEWEST_RUNS:
        return 0.0
    return float(np.median(np.maximum(abs(runs.mean(1)) - steps, 0) / runs.std(1)))


def steps_off(values: Array) -> float:
    """Return the median of the mean of a run of weights, in steps between codes; 0 if there are too few runs.

    A run is ``RUN`` adjacent weights of a row. The median is computed for the first rows, the last rows, the first
    columns and the last columns, half of the matrix each; the one farthest from 0 is returned, since zero points may be
    wrong in a half of a matrix. About ``MANY_RUNS`` runs are read. A run with weights of several groups, whose steps
    differ, is left out. In MiniLM, the result is at most 0.22, and at least 0.91 if the zero points are off by one.
    """
    rows, in_row = values.reshape(-1, values.shape[-1]), values.shape[-1] // RUN
    at = np.arange(0, len(rows) * in_row, len(rows) * in_row // MANY_RUNS + 1)
    row, column = np.divmod(at, max(in_row, 1))
    runs = rows[row[:, None], column[:, None] * RUN + np.arange(RUN)].astype("<f8")
    gaps = np.diff(np.sort(runs, 1), axis=1)
    sizes = np.abs(runs).max(1, keepdims=True, initial=0)
    steps = np.where(gaps > SAME * sizes, gaps, np.inf).min(1, initial=np.inf)
    with np.errstate(all="ignore"):
        codes = (runs - runs[:, :1]) / steps[:, None]
        is_even = (np.abs(codes - codes.round()) < EVEN).all(1) & np.isfinite(steps)
    found = 0.0
    for half in (row * 2 < len(rows), row * 2 >= len(rows), column * 2 < in_row, column * 2 >= in_row):
        own = np.flatnonzero(half & is_even)
        if len(own) < MANY_RUNS // 4:
            return 0.0
        found = max(found, float(np.median(runs[own].mean(1) / steps[own])), key=abs)
    return found


def rise_with_scales(values: Array, codes: Array | None) -> bool:
    """Return whether blocks with larger scales have larger codes, too; False if ``codes`` is None.

    ``values`` are codes times scales.
    """
    if codes is None:
        return False
    step = values.size // LOOKED_AT | 1  # odd, so that values of all columns are looked at
    values, codes = values.reshape(-1)[::step], codes.reshape(-1)[::step]
    some = (values != 0) & (codes != 0)
    sizes = np.log(abs(codes[some].astype("<f8")))
    scales = np.log(abs(values[some].astype("<f8"))) - sizes
    if not scales.size or np.mean(sizes > sizes.max() + np.log(AT_TOP)) > CLIPPED:
        return False
    if len(np.unique(scales.round(4))) < SCALES:
        return False
    scales -= scales.mean()
    variance = float(np.mean(scales * scales))
    return variance > VARIES and float(np.mean(scales * sizes)) > RISES * variance
