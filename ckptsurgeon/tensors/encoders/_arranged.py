"""Arranges a weight so that its groups run along rows: unchanged, as one row, or with rows and columns exchanged.

``Encoded.facts`` says how: it has ``flat`` if groups run along all elements in row-major order, as in bitsandbytes;
``across`` if they run along the columns, as in gpt-oss and AWQ; ``ordered`` if columns are sorted by their group, as in
GPTQ with ``desc_act``. Another entry, ``turned``, is about the result: the stored tensors are computed from the
unchanged weight, and then their rows and columns are exchanged, as in GPTQ.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ..info import Encoded, TensorInfo
from ..ops.regions import Array, Box, box_shape, spanned
from ._extremes import Read

__all__ = ["arranged", "arranged_shape", "is_transposed", "sorted_columns"]


def arranged_shape(made: Encoded) -> tuple[int, ...]:
    """Return the shape of the arranged weight, which has as many dimensions as the weight."""
    facts, shape = dict(made.facts), made.of[0].shape
    if facts.get("flat"):
        return (*(1 for _ in shape[1:]), prod(shape))
    if facts.get("across"):
        return (*shape[:-2], shape[-1], shape[-2])
    return shape


def is_transposed(made: Encoded) -> bool:
    """Return whether the stored tensor ``made`` is transposed: each of its rows belongs to one column of the weight."""
    facts = dict(made.facts)
    return made.role not in ("whole", "shape") and bool(facts.get("across") or facts.get("turned"))


def arranged(made: Encoded, read: Read) -> tuple[Encoded, Read]:
    """Return ``made`` with the arranged weight in place of the weight, and a function that reads the arranged weight.

    ``read`` reads parts of the weight before it is arranged.
    """
    facts, shape = dict(made.facts), arranged_shape(made)
    if facts.get("ordered"):
        other = TensorInfo(made.of[0].dtype, shape)
        return replace(made, of=(other, *made.of[1:])), _sorted(read, made.of[0], other, sorted_columns(made, read))
    how = _flattened if facts.get("flat") else _exchanged if facts.get("across") else None
    if how is None:
        return made, read
    weight = made.of[0]
    other = TensorInfo(weight.dtype, shape)
    return replace(made, of=(other, *made.of[1:])), how(read, weight, other)


def sorted_columns(made: Encoded, read: Read) -> Array:
    """Return the indices of the columns of an ``ordered`` weight, sorted by the indices of their groups.

    ``read`` reads the group of each column, which is the last tensor of ``made.of``.
    """
    order = made.of[-1]
    return np.argsort(read(order, ((0, order.shape[0]),)), kind="stable")


def _sorted(read: Read, weight: TensorInfo, other: TensorInfo, columns: Array) -> Read:
    def part(info: TensorInfo, box: Box) -> Array:
        if info is not other:
            return read(info, box)
        whole = read(weight, (*box[:-1], (0, weight.shape[-1])))
        return np.take(whole, columns[slice(*box[-1])], -1)

    return part


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
