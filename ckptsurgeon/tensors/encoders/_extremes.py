"""Finds the minimum and the maximum of each group of elements, in bounded memory even if a group is a whole tensor."""

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
"""A function that reads a part of a tensor, stored or computed, as an array of the type that ``raw_dtype`` returns."""

ELEMENTS = 1 << 16
"""How many elements are processed at once: few enough for all intermediate arrays to fit in the cache of a core.

It is a multiple of the number of codes in a stored word and in a block, so that no word or block is split.
"""


def as_float32(values: Array, dtype: str) -> Array:
    """Return values of a dtype as float32; float64 values beyond the range of float32 become infinite."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(widened(values, dtype), dtype="<f4")


def shifted(box: Box, origin: Box) -> Box:
    """Return ``box``, which counts from the start of ``origin``, with indices from the start of the tensor."""
    return tuple((begin + at, end + at) for (begin, end), (at, _) in zip(box, origin, strict=True))


def elements_of(groups: Box, steps: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the box of the elements in a box of groups; the last group along a dimension may have fewer elements.

    ``steps`` is the size of a group along each dimension, ``shape`` the shape of the tensor.
    """
    spans = zip(groups, steps, shape, strict=True)
    return tuple((begin * step, min(end * step, size)) for (begin, end), step, size in spans)


def extremes(
    read: Read, weight: TensorInfo, steps: Sequence[int], groups: Box, name: str, *, with_zero: bool = True
) -> tuple[Array, Array]:
    """Return the minimum and the maximum of each group in the box ``groups``, as float32.

    Unless ``with_zero`` is false, the range from minimum to maximum is extended to contain 0. ``steps`` is the size of
    a group along each dimension. Raises PlanError if a value is NaN or infinite; ``name`` is the tensor's name in the
    message.
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
            f"{escape(name)} has values that are NaN or infinite, or too large for float32: they cannot be quantised.",
            hint="ckpt inspect --stats counts such values. In ckpt convert, --exclude leaves the tensor as it is. For "
            "a merge, take it from a model without them first: ckpt transplant SOUND DAMAGED --include "
            f"{escape(name)} -o OUTPUT.",
        )
    return least, greatest


def _reduced(how: np.ufunc, values: Array, part: Box, steps: Sequence[int]) -> Array:
    """Return the minimum or the maximum (``how``) of the values of each group that ``part`` overlaps.

    The result has as many dimensions as ``values``, which are the elements of ``part``.
    """
    for dim, ((begin, end), step) in enumerate(zip(part, steps, strict=True)):
        if step == 1:
            continue
        if begin // step == (end - 1) // step:  # reduceat, below, takes many times as long for any groups
            values = how.reduce(values, axis=dim, keepdims=True)
        elif begin % step == 0 and (end - begin) % step == 0:
            split = (*values.shape[:dim], -1, step, *values.shape[dim + 1 :])
            values = how.reduce(values.reshape(split), axis=dim + 1)
        else:
            starts = np.maximum(np.arange(begin // step, -(-end // step)) * step - begin, 0)
            values = how.reduceat(values, starts, axis=dim)
    return values
