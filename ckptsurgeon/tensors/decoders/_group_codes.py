"""Tests whether the codes of groups fit their zero points (with MLX: biases / -scales).

In each group, an asymmetric quantiser gives the smallest weight the lowest code, and the largest the highest code.
Trained weights have means near 0, so the mean code of a group is near its zero point. A symmetric quantiser has a
single zero point. In most groups, its codes reach only one end of their range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..info import Decoded
from ..odd_scales.group_codes import ASYMMETRIC, SYMMETRIC, UNFIT
from ..ops.regions import Array, Box

__all__ = ["kinds_of_groups"]

OUTPUTS = {"gptq": 1, "awq": 1, "packed": 0}
"""{encoding: the dimension of its codes, scales and zero points that counts the outputs}."""
WORD = 32
"""The number of bits in a word."""
PACKED = {"gptq": ("zero",), "awq": ("codes", "zero"), "packed": ("zero",)}
"""{encoding: the parts that are packed along the outputs}"""
ROWS, ALIGNED = 64, 32
"""The most rows that are examined at the beginning of each decoded part, and at its end.

They begin at a multiple of ``ALIGNED``, where words begin, too.
"""
FEWEST, SMALLEST = 64, 16
"""Codes are judged only if there are at least ``FEWEST`` groups, each with at least ``SMALLEST`` codes."""
FAR = 1.2
"""Zero points do not fit if the variance of (mean code - zero point) is over this many times that of mean codes.

If they fit, it is 0.04 to 0.4 times as large (RTN and GPTQ, with and without the order of columns, groups of 32 and
128). If the zero points or the order are from another tensor, it is 1.6 to 5 times as large. But it is also large if
the weights of each group have a mean of their own, as in filters of images and sounds; the next constants exclude
these.
"""
LIKE, ALONE = 2.2, 1.4
"""Zero points of another tensor vary at most ``LIKE`` times as much as the mean codes; those of filters vary more.

If columns are in a wrong order, mean codes vary at most ``ALONE`` times as much as by chance.
"""
ERRORS, RELATED = 3, 0.3
"""Zero points of another tensor have at most this correlation with the mean codes: ``ERRORS`` standard errors.

The correlation may be at most ``RELATED`` in any case.
"""
INSIDE = 0.9
"""More than this share of the zero points of another tensor lie between the lowest and the highest code.

Zero points of filters are often at the ends of the range, or beyond.
"""
VARIES = 0.3
"""Zero points are not compared if their standard deviation, in steps between codes, is smaller."""
EVEN = 0.93
"""Codes are not judged if they look like random numbers.

They look so if their variance in groups is more than this share of the variance of equally distributed codes. Normally
distributed weights have the share 0.87 in groups of 16, and 0.4 in groups of 128.
"""
EQUAL = 0.25
"""A part is not judged if more than this share of its scales equal the previous scale in their row.

Then its weights were clipped at one value, or have few values, as in BitNet.
"""
BITS, BOTH, SPREAD = 4, 0.58, 2.2
"""Codes of at least ``BITS`` bits that have a single zero point are asymmetric if two conditions are met.

At least the share ``BOTH`` of the groups has both the lowest and the highest code, and the variance of the mean codes
is over ``SPREAD`` times as large as by chance. In MiniLM, the two numbers are up to 0.51 (with clipped scales) and 0.6
to 1.6 for symmetric codes, 0.61 to 1 and 2.7 to 16 for asymmetric codes.
"""

Decode = Callable[[Mapping[str, Array], Box], Array]


def kinds_of_groups(made: Decoded, arrays: Mapping[str, Array], box: Box, decode: Decode) -> Iterator[str]:
    """Compare the codes of a part of a weight with its zero points; yield ``UNFIT``, ``ASYMMETRIC`` or ``SYMMETRIC``.

    ``UNFIT``: the zero points vary, but do not fit the codes. ``ASYMMETRIC`` or ``SYMMETRIC``: there is a single zero
    point, and a quantiser of this kind probably made the codes. The first rows and the last rows are examined
    separately, so up to two kinds are yielded. Nothing is yielded if there are too few rows, if zero points vary and
    fit the codes, or if the encoding is not in ``OUTPUTS``. ``arrays`` are the stored tensors, by role, for the part
    ``box`` of the weight; ``decode`` decodes such arrays.
    """
    *lead, (first, last), inputs = box
    if made.encoding not in OUTPUTS or first % ALIGNED or (lead and made.encoding != "packed"):
        return
    facts = dict(made.facts)
    bits, size = int(facts.get("bits", 4)), int(facts["group"])
    if size < SMALLEST or inputs[0] % size:
        return
    for some in {(first, min(last, first + ROWS)), (max(first, (last - ROWS) // ALIGNED * ALIGNED), last)}:
        span = (some[0] - first, some[1] - first)
        parts = {role: _rows(made.encoding, role, one, span, bits) for role, one in arrays.items()}
        if _has_equal_scales(parts["scale"] if OUTPUTS[made.encoding] == 0 else parts["scale"].T):
            continue
        ones = {"scale": np.ones_like(parts["scale"])}
        if "bias" in parts:
            codes = decode({**_copied(parts), **ones, "bias": np.zeros_like(parts["bias"])}, (some, inputs))
            with np.errstate(all="ignore"):
                zeros = np.repeat(-parts["bias"].astype("<f8") / parts["scale"], size, 1)[:, : codes.shape[1]]
        else:
            zeros = -decode({**_copied(parts), **ones, "codes": np.zeros_like(parts["codes"])}, (some, inputs))
            codes = decode({**_copied(parts), **ones}, (some, inputs)) + zeros
        group = np.arange(codes.shape[1]) // size
        if "order" in parts and (parts["order"] >= 0).all():
            group = parts["order"].astype(np.intp)
        if (kind := _judged(codes, zeros, group, bits)) is not None:
            yield kind


def _judged(codes: Array, zeros: Array, group: Array, bits: int) -> str | None:
    """Return the kind of codes: ``UNFIT``, ``ASYMMETRIC`` or ``SYMMETRIC``; None if none applies.

    ``codes`` has the shape (outputs, inputs), ``zeros`` has the zero point of each code, and ``group`` the
    group of each input.
    """
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    numbers = np.diff(starts, append=len(group))
    codes, zero = codes[:, by_group], zeros[:, by_group[starts]]
    mean = np.add.reduceat(codes, starts, 1) / numbers
    variance = np.add.reduceat(codes * codes, starts, 1) / numbers - mean * mean
    wide = np.ix_((variance > 0).all(1) & np.isfinite(zero).all(1), numbers >= SMALLEST)
    mean, variance, zero = mean[wide], variance[wide], zero[wide]
    if zero.size < FEWEST or min(zero.shape) < 2 or variance.mean() > EVEN * ((1 << bits) ** 2 - 1) / 12:
        return None
    chance = float((variance / numbers[wide[1][0]]).mean())
    if _spread(zero) > VARIES**2:
        return UNFIT if _are_unrelated(mean, zero, chance, (1 << bits) - 1) else None
    middle = 1 << (bits - 1)
    if bits < BITS or np.ptp(zero) > 0 or not middle - 1 <= zero[0, 0] <= middle:
        return None
    both = (np.minimum.reduceat(codes, starts, 1) == 0) & (np.maximum.reduceat(codes, starts, 1) == (1 << bits) - 1)
    is_asymmetric = both[wide].mean() >= BOTH and _spread(mean) > SPREAD * chance
    return ASYMMETRIC if is_asymmetric else SYMMETRIC


def _are_unrelated(mean: Array, zero: Array, chance: float, top: int) -> bool:
    """Return whether the zero points of groups are unrelated to their mean codes; both are (outputs, groups).

    ``chance`` is the variance that the mean codes would have by chance, if all groups had the same distribution;
    ``top`` is the highest code.
    """
    codes, zeros, both = _spread(mean), _spread(zero), _spread(mean - zero)
    correlation = (codes + zeros - both) / 2 / max(codes * zeros, np.finfo(float).tiny) ** 0.5
    largest = min(RELATED, ERRORS / ((mean.shape[0] - 1) * (mean.shape[1] - 1)) ** 0.5)
    is_inside = ((zero > 0.5) & (zero < top - 0.5)).mean() > INSIDE
    are_like = zeros < LIKE * codes or codes < ALONE * chance
    return bool(both > FAR * codes and abs(correlation) < largest and are_like and is_inside)


def _has_equal_scales(scales: Array) -> bool:
    """Return whether many of the scales (outputs, groups) equal the scale of the previous group of the same output."""
    return scales.shape[1] > 1 and float((scales[:, 1:] == scales[:, :-1]).mean()) > EQUAL


def _spread(values: Array) -> float:
    """Return the variance of a matrix (outputs, groups) after the means of its rows and of its columns are subtracted.

    These means are subtracted because they prove nothing about zero points: all codes of an output, or all codes of a
    group, may be larger than others.
    """
    rows, columns = values.shape
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    return float((rest * rest).sum() / ((rows - 1) * (columns - 1)))


def _rows(encoding: str, role: str, array: Array, span: tuple[int, int], bits: int) -> Array:
    """Return the part of a stored tensor that belongs to a range of outputs; ``order`` is returned unchanged.

    ``span`` is (first, end) of the range, counted from the first output in ``array``. If the tensor is packed along the
    outputs, the range begins where a word begins. Of stacked matrices, such as experts, only the first one is returned.
    """
    if role == "order":
        return array
    array = array[(0,) * (array.ndim - 2)]
    begin, end = span
    if role in PACKED[encoding]:
        begin, end = begin * bits // WORD, -(-end * bits // WORD)
    return array[begin:end] if OUTPUTS[encoding] == 0 else array[:, begin:end]


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies of arrays, because a decoder may write into them."""
    return {role: one.copy() for role, one in arrays.items()}
