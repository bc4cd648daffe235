"""Gathers the rows of a tensor whose vocabulary is another: moved, averaged, zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.rows import Rows
from ...planning.plan.step import Step
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array, Box, blocks, box_shape
from ...tensors.ops.casts import raw_dtype
from ...tensors.ops.means import average, rounded
from .reading import read_part

__all__ = ["gathered", "mapped_block", "mapped_boxes"]

ELEMENTS = 1 << 18

NEAR = 8
"""Rows that are this many times as far apart as they would be one beside the other are read one by one."""


def mapped_boxes(step: Step, limit: int) -> Iterator[Box]:
    """Yield the parts of a destination tensor that come from the source, of at most ``limit`` elements or one row."""
    rows, axis = _rows(step), step.axis
    others = math.prod(size for d, size in enumerate(step.shape) if d != axis)
    most = max(1, limit // max(1, others))
    begin = 0
    while begin < len(rows.rows):
        end = begin
        while end < len(rows.rows) and rows.rows[end] is not None and end - begin < most:
            end += 1
        if end > begin:
            yield tuple((begin, end) if d == axis else (0, size) for d, size in enumerate(step.shape))
        begin = max(end, begin + 1)


def mapped_block(step: Step, info: TensorInfo, source: Checkpoint, box: Box) -> Array:
    """Return a part of a mapped tensor, as the source's dtype is held; rows that are drawn are zero in it."""
    rows, axis = _rows(step), step.axis
    begin, end = box[axis]
    out = gathered(rows, axis, info, source, box)
    for place in range(begin, end):
        these = rows.rows[place]
        if isinstance(these, tuple):
            parts = ((read_part(source, info, _part(box, axis, row, 1)), info.dtype) for row in these)
            out[_along(box, axis, place - begin, 1)] = rounded(*average(parts, ()), info.dtype)[0]
        elif these is None and rows.new == "mean":
            inner = tuple(slice(0, 1) if d == axis else slice(*ends) for d, ends in enumerate(box))
            out[_along(box, axis, place - begin, 1)] = _mean(step, info, source)[inner]
    return out


def gathered(rows: Rows, axis: int, info: TensorInfo, source: Checkpoint, box: Box) -> Array:
    """Return a part of a tensor whose rows lie elsewhere in its source; those that are not one of its are zero."""
    begin, end = box[axis]
    found = [(place - begin, row) for place in range(begin, end) if isinstance(row := rows.rows[place], int)]
    out = np.zeros(box_shape(box), raw_dtype(info.dtype))
    if not found:
        return out
    places, of = (list(numbers) for numbers in zip(*found, strict=True))
    low, high = min(of), max(of) + 1
    if axis and high - low <= NEAR * len(of):  # rows that lie across are read in one go
        part = read_part(source, info, _part(box, axis, low, high - low))
        out[_these(box, axis, places)] = part[_these(box, axis, [row - low for row in of])]
        return out
    for place, row, number in rows.runs(begin, end):
        out[_along(box, axis, place - begin, number)] = read_part(source, info, _part(box, axis, row, number))
    return out


def _rows(step: Step) -> Rows:
    assert step.rows is not None  # by check_step
    return step.rows


def _part(box: Box, axis: int, row: int, number: int) -> Box:
    return tuple((row, row + number) if d == axis else ends for d, ends in enumerate(box))


def _along(box: Box, axis: int, place: int, number: int) -> tuple[slice, ...]:
    return tuple(slice(place, place + number) if d == axis else slice(None) for d in range(len(box)))


def _these(box: Box, axis: int, rows: list[int]) -> tuple[slice | list[int], ...]:
    return tuple(rows if d == axis else slice(None) for d in range(len(box)))


def _mean(step: Step, info: TensorInfo, source: Checkpoint) -> Array:
    """Return the mean of all rows of a source tensor, worked out once."""
    rows = _rows(step)
    known = (step.source, step.source_key)
    if known not in rows.means:
        rows.means[known] = rounded(*_mean_along(step.axis, info, source), info.dtype)[0]
    found: Array = rows.means[known]
    return found


def _mean_along(axis: int, info: TensorInfo, source: Checkpoint) -> tuple[Array, str]:
    """Return the mean along an axis in double precision, block by block."""
    shape: Sequence[int] = [1 if d == axis else size for d, size in enumerate(info.shape)]
    total, wide = None, "float64"
    for box in blocks(info.shape, ELEMENTS):
        values, wide = average([(read_part(source, info, box), info.dtype)], ())
        if total is None:
            total = np.zeros(shape, values.dtype)
        inner = tuple(slice(0, 1) if d == axis else slice(*ends) for d, ends in enumerate(box))
        total[inner] += values.sum(axis=axis, keepdims=True)
    assert total is not None
    return total / info.shape[axis], wide
