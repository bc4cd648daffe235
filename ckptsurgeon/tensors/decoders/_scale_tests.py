"""Tells from scales and codes whether scales have the wrong sign, are inverse or 0, or were exchanged with biases."""

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

AutoRound and llama.cpp choose the sign of each scale so that the value of the largest magnitude gets the code of the
largest magnitude, which is negative. So about half of their scales are negative.
"""
MIXED = 1 / 3
"""If more than this share of a weight's values has the rarer of the two signs, quantisers make either none or about
half of its scales negative."""
DIFFERENT = 3
"""If codes have at least this many different values other than 0, they are not all codes of the number 0.

The number 0 has one code, or two by rounding.
"""
RISES = 0.1
"""Scales are inverse if codes are larger where scales are larger: log(codes) over log(scales) has at least this slope.

A scale is the largest magnitude of its block, divided by a constant. So in a block with an outlier the scale is larger
and the other codes are smaller: the slope is negative (-0.9 to -0.03 in all matrices of MiniLM), that of inverse scales
positive.
"""
CLIPPED, AT_TOP = 0.05, 0.99
"""If more than the share ``CLIPPED`` of codes exceeds ``AT_TOP`` times the largest code, weights were perhaps clipped.

In a block of clipped weights with a larger scale, the other codes are larger too, although the scale is right.
"""
VARIES = 1e-6
"""The smallest variance of the logarithm of scales for which the slope can be computed."""
LOOKED_AT, SCALES = 1 << 16, 16
"""About how many values are compared with their codes, and the fewest different scales that show a slope."""
SMALLEST = 1e-5
"""Scales of MLX may be larger than biases if both are smaller than this, since MLX has no scales below 1e-7."""
SPAN, MOST = 0.3, 0.9
"""Scales are too small if, in over the share ``MOST`` of groups, the weights differ by less than the share ``SPAN`` of
the largest weight."""
VARIED = 0.05
"""Scales are judged by ``SPAN`` only if biases vary by more than this share of their mean: otherwise, the weights may
be nearly constant, as those of norms are."""
RUN, RUNS = 32, 64
"""How many weights a run (a group or a part of it) has, and about how many runs are taken from a part of a matrix."""
MANY_RUNS = 256
"""About how many runs are needed to see a shift by one step: by chance, a single run is shifted by half a step."""
SAME, EVEN = 1e-3, 0.05
"""Weights count as equal if they differ by less than the share ``SAME`` of the largest, and as multiples of a step if
they are within ``EVEN`` steps of one."""
FEWEST_RUNS = 16
"""The fewest runs, other than those of equal weights, whose median is computed."""
OPPOSING = 1 / 16
"""If more than this share of scales are negative like their biases, signs were changed: MLX writes no such scales."""
FEW = 4
"""If fewer scales than this are compared with biases, or are negative like their biases, nothing is reported."""


def are_negative(scale: Array) -> bool:
    """Return whether no scale is positive, and more are negative than can be by chance."""
    return scale.size >= CERTAIN and not scale.max() > 0 and int(np.count_nonzero(scale < 0)) >= CERTAIN


def should_be_mixed(values: Array) -> bool:
    """Return whether a quantiser makes either none or about half of the scales of these values negative.

    If not, all scales may be negative on purpose: AutoRound makes such scales if most values have one sign, or if the
    largest and the smallest value of most blocks have the same magnitude, as in ternary weights.
    """
    below, above = int(np.count_nonzero(values < 0)), int(np.count_nonzero(values > 0))
    return min(below, above) > MIXED * (below + above) and have_many_values(values)


def have_many_values(codes: Array) -> bool:
    """Return whether there are several different codes other than 0."""
    return len(np.unique(codes[codes != 0])) >= DIFFERENT


def odd_biases(bits: int, scale: Array, bias: Array) -> Iterator[str]:
    """Yield the kinds of odd scales of MLX's affine codes.

    The bias of a group is the end of its range that is farther from 0, and a multiple of its scale with the other sign.
    So its magnitude is never smaller than that of the scale. Older versions of MLX have only positive scales; their
    biases are the smallest values. (mlx/backend/cpu/quantized.cpp, ``quantize``.)
    """
    some = (scale != 0) & (bias != 0)
    scale, bias = scale[some].astype("<f8"), bias[some].astype("<f8")
    if scale.size < FEW or bits < 2:
        return
    if are_exchanged(float(scale.min()), float(np.mean(scale * scale)), float(np.mean(bias * bias))):
        yield EXCHANGED
    both = int(np.count_nonzero((scale < 0) & (bias < 0)))
    if both >= FEW and both > OPPOSING * scale.size:
        yield OPPOSED
    elif scale.size >= CERTAIN and _are_narrow(bits, abs(scale), abs(bias)):
        yield NARROW


def _are_narrow(bits: int, scale: Array, bias: Array) -> bool:
    """Return whether, in most groups, the weights hardly differ from each other, although the groups differ."""
    if not np.std(bias) > VARIED * np.mean(bias):
        return False
    return bool(np.mean(scale * (2**bits - 1) < SPAN * bias) > MOST)


def are_exchanged(smallest: float, scales: float, biases: float) -> bool:
    """Return whether MLX's scales and biases were exchanged: the scales are larger, and some of them are negative.

    ``smallest`` is the smallest scale; ``scales`` and ``biases`` are mean squares.
    """
    return smallest < 0 and scales > max(biases, SMALLEST**2)


def lean_of(values: Array) -> float:
    """Return the median of |mean| / deviation of runs of weights along rows; 0 if there are too few runs.

    At most twice ``RUNS`` runs are looked at, spread over all rows and columns. A step between two codes is subtracted
    from each |mean|: in a group with an outlier, all other weights may have one code, which is the nearest to 0.
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
    """Return by how many steps between codes most runs of weights are shifted; 0 if there are too few runs.

    Each half of the rows, and of the columns, is looked at for itself, and the largest shift counts: zero points may be
    wrong in a half of a matrix. About ``MANY_RUNS`` runs are looked at; a run in which the steps differ, because it has
    weights of several groups, is left out. In MiniLM, the shift is at most 0.22, and at least 0.91 if the zero points
    are off by one.
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
    """Return whether codes are larger where scales are larger; False if ``codes`` is None.

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
