"""Finds the least and the greatest value of each group of elements, in memory that is bounded whatever the group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ...errors import PlanError
from ...util.text import escape
from ..info import TensorInfo
from ..ops.casts import widened
from ..ops.regions import Array, Box, blocks, box_shape

__all__ = ["Read", "as_float32", "elements_of", "extremes", "shifted"]

Read: TypeAlias = Callable[[TensorInfo, Box], Array]
"""A function that reads a part of a tensor, stored or derived, in the type of ``raw_dtype``."""

ELEMENTS = 1 << 18
"""Elements that are widened and reduced, or rounded, at once: as many as fit in a core's cache.

It is a multiple of the codes of a stored word and of a block, so that none is divided.
"""


def as_float32(values: Array, dtype: str) -> Array:
    """Return values of a dtype as float32; those of float64 that are beyond its range become infinite."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(widened(values, dtype), dtype="<f4")


def shifted(box: Box, origin: Box) -> Box:
    """Return a box whose indices are counted from the first element of ``origin``, counted from that of the tensor."""
    return tuple((begin + at, end + at) for (begin, end), (at, _) in zip(box, origin, strict=True))


def elements_of(groups: Box, steps: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the elements of a box of groups; the last group along a dimension may have fewer than the others."""
    spans = zip(groups, steps, shape, strict=True)
    return tuple((begin * step, min(end * step, size)) for (begin, end), step, size in spans)


def extremes(
    read: Read, weight: TensorInfo, steps: Sequence[int], groups: Box, name: str, *, with_zero: bool = True
) -> tuple[Array, Array]:
    """Return the least and the greatest value of each group in the box ``groups``, as float32.

    Both include 0, unless ``with_zero`` is false. Raises PlanError, which gives the tensor as ``name``, if a value is
    NaN or infinite.
    """
    far = np.float32(0 if with_zero else np.inf)
    least, greatest = np.full(box_shape(groups), far), np.full(box_shape(groups), -far)
    whole = elements_of(groups, steps, weight.shape)
    for sub in blocks(box_shape(whole), ELEMENTS):
        part = shifted(sub, whole)
        values = as_float32(read(weight, part), weight.dtype)
        low, high = (_reduced(how, values, part, steps) for how in (np.minimum, np.maximum))
        spans = zip(part, steps, groups, strict=True)
        at = tuple(slice(begin // step - first, -(-end // step) - first) for (begin, end), step, (first, _) in spans)
        least[at] = np.minimum(least[at], low)
        greatest[at] = np.maximum(greatest[at], high)
    if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
        raise PlanError(
            f"{escape(name)} has values that are NaN or infinite, or beyond float32: no code stands for them.",
            hint="ckpt inspect --stats counts them; --exclude leaves the tensor as it is.",
        )
    return least, greatest


def _reduced(how: np.ufunc, values: Array, part: Box, steps: Sequence[int]) -> Array:
    """Return the least or the greatest value of each group that ``part`` overlaps, in as many dimensions."""
    for dim, ((begin, end), step) in enumerate(zip(part, steps, strict=True)):
        if step == 1:
            continue
        if begin // step == (end - 1) // step:  # reduceat takes many times as long, whatever the groups
            values = how.reduce(values, axis=dim, keepdims=True)
        elif begin % step == 0 and (end - begin) % step == 0:
            split = (*values.shape[:dim], -1, step, *values.shape[dim + 1 :])
            values = how.reduce(values.reshape(split), axis=dim + 1)
        else:
            starts = np.maximum(np.arange(begin // step, -(-end // step)) * step - begin, 0)
            values = how.reduceat(values, starts, axis=dim)
    return values
