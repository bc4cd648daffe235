"""Arranges a weight as its encoding divides it into groups: as it is, as one row, or with rows and columns exchanged.

The facts of ``Encoded`` say how: ``flat``, if groups run along all elements in row-major order, as those of
bitsandbytes; ``across``, if they run along the columns, as those of gpt-oss and AWQ. What is computed of a weight as it
is may be stored with rows and columns exchanged: ``turned``, as the parts of GPTQ.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ..info import Encoded, TensorInfo
from ..ops.regions import Array, Box, box_shape, spanned
from ._extremes import Read

__all__ = ["arranged", "arranged_shape", "is_upright"]


def arranged_shape(made: Encoded) -> tuple[int, ...]:
    """Return the shape of the weight as it is divided into groups: as many dimensions, in another arrangement."""
    facts, shape = dict(made.facts), made.of[0].shape
    if facts.get("flat"):
        return (*(1 for _ in shape[1:]), prod(shape))
    if facts.get("across"):
        return (*shape[:-2], shape[-1], shape[-2])
    return shape


def is_upright(made: Encoded) -> bool:
    """Return whether the rows of a stored part run along the columns of the weight."""
    facts = dict(made.facts)
    return made.role not in ("whole", "shape") and bool(facts.get("across") or facts.get("turned"))


def arranged(made: Encoded, read: Read) -> tuple[Encoded, Read]:
    """Return an encoding of the arranged weight, and the function that reads parts of that weight.

    ``read`` reads parts of the weight as it is.
    """
    facts, shape = dict(made.facts), arranged_shape(made)
    how = _flattened if facts.get("flat") else _exchanged if facts.get("across") else None
    if how is None:
        return made, read
    weight = made.of[0]
    other = TensorInfo(weight.dtype, shape)
    return replace(made, of=(other, *made.of[1:])), how(read, weight, other)


def _flattened(read: Read, weight: TensorInfo, other: TensorInfo) -> Read:
    def part(info: TensorInfo, box: Box) -> Array:
        if info is not other:
            return read(info, box)
        boxes = spanned(weight.shape, *box[-1])
        pieces = [np.ascontiguousarray(read(weight, one)).reshape(-1) for one in boxes]
        return np.concatenate(pieces).reshape(box_shape(box))

    return part


def _exchanged(read: Read, weight: TensorInfo, other: TensorInfo) -> Read:
    def part(info: TensorInfo, box: Box) -> Array:
        if info is not other:
            return read(info, box)
        return np.swapaxes(read(weight, (*box[:-2], box[-1], box[-2])), -1, -2)

    return part
