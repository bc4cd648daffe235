"""Computes blocks of a tensor that is a concatenation of other tensors, each multiplied by a weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from ...methods.lora.expert_stack import experts_of
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, cast, raw_dtype
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array, Box, box_shape
from .reading import Part, cast_for, named, read_part

__all__ = ["concatenated"]


def concatenated(step: Step, parts: Sequence[Part], box: Box) -> tuple[Array, CastLosses]:
    """Return the part ``box`` of a concatenated tensor, and the counts of values that were lost in casts.

    If an input has a weight, its values are multiplied in double precision and rounded once. Elements that no input
    fills are zero.
    """
    turned, axis, experts = step.policy == "transpose", step.axis, experts_of(step.policy)
    made, lost = np.zeros(box_shape(box), raw_dtype(step.dtype)), CastLosses()
    (begin, end), at = box[axis], 0
    for expert, (number, (info, source)) in product(range(experts), enumerate(parts)):
        size = (info.shape[::-1] if turned else info.shape)[axis] // experts
        first, last = max(begin - at, 0), min(end - at, size)
        if first < last:
            own = (*box[:axis], (expert * size + first, expert * size + last), *box[axis + 1 :])
            values = read_part(source, info, own[::-1] if turned else own)
            filled, more = _weighted(step, values.T if turned else values, info.dtype, number)
            place = (*(slice(None) for _ in box[:axis]), slice(at + first - begin, at + last - begin))
            made[place] = filled
            lost += more
        at += size
    return made, lost


def _weighted(step: Step, values: Array, dtype: str, number: int) -> tuple[Array, CastLosses]:
    """Return values of the input ``number`` times its weight, in the step's dtype, and the counts of lost values."""
    weight = step.weights[number] if step.weights else 1.0
    if weight == 1.0:
        return cast_for(step, values, dtype)
    with np.errstate(all="ignore"):
        wide = cast(values, dtype, "float64")[0] * weight
    return named(step, rounded, wide, "float64")
