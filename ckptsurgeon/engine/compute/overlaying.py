"""Lays the part of a source that fits over the initial values of a tensor: over all of them, or over a block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.step import Step
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array, Box, blocks, box_shape, overlap_shape
from ...tensors.ops.casts import Lost, cast
from .casting import cast_for
from .mapping import mapped_block, mapped_boxes
from .part import Part
from .reading import read_part

__all__ = ["overlaid_block", "overlaid_boxes", "overlay"]

BLOCK_BYTES = 2 << 20
"""About the bytes of what is read at once."""


def overlay(step: Step, info: TensorInfo, source: Checkpoint, initial: Array) -> Lost:
    """Put the part of a source that fits over a tensor's initial values; returns how many values lost their size."""
    lost = Lost()
    limit = max(1, BLOCK_BYTES // max(initial.itemsize, info.itemsize))
    for box in overlaid_boxes(step, info, limit):
        values = mapped_block(step, info, source, box) if step.op == "map" else read_part(source, info, box)
        values, more = cast_for(step, values, info.dtype)
        initial[_slices(box)] = values.reshape(box_shape(box))
        lost += more
    return lost


def overlaid_boxes(step: Step, info: TensorInfo, limit: int) -> Iterator[Box]:
    """Yield the parts of a tensor that a source is laid over, of about ``limit`` elements."""
    return mapped_boxes(step, limit) if step.op == "map" else blocks(overlap_shape(info.shape, step.shape), limit)


def overlaid_block(step: Step, origin: Part, initial: Part, box: Box) -> tuple[Array, Lost]:
    """Return a block of a tensor whose initial values lie in a checkpoint, and how many values lost their size."""
    info, source = origin
    kept, keeper = initial
    values, lost = cast(read_part(keeper, kept, box), kept.dtype, step.dtype)
    values = np.array(values).reshape(box_shape(box))
    if step.op == "map":
        laid, more = cast_for(step, mapped_block(step, info, source, box), info.dtype)
        here = _given(step, box)
        values[here] = laid.reshape(box_shape(box))[here]
        return values, lost + more
    inside = tuple((begin, min(end, size)) for (begin, end), size in zip(box, info.shape, strict=True))
    if all(begin < end for begin, end in inside):
        laid, more = cast_for(step, read_part(source, info, inside), info.dtype)
        values[tuple(slice(0, size) for size in box_shape(inside))] = laid.reshape(box_shape(inside))
        lost += more
    return values, lost


def _given(step: Step, box: Box) -> tuple[slice | list[int], ...]:
    """Return the index, within a block, of the rows that the source has."""
    assert step.rows is not None  # by check_step
    begin, end = box[step.axis]
    rows = [place for place, row in enumerate(step.rows.rows[begin:end]) if row is not None]
    return tuple(rows if d == step.axis else slice(None) for d in range(len(box)))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in box)
