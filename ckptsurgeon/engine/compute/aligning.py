"""Inputs of a merge that have another shape than the output: what all have of it, and whether they can be made fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...planning.mismatch.shapes import is_reshape
from ...planning.plan.rows import Rows
from ...planning.plan.step import Input, Step
from ...tensors.ops.boxes import Box, blocks
from .part import Place, placed

__all__ = ["aligns", "common_shape", "inner_places"]

Shape = tuple[int, ...]


def shape_in(step: Step, one: Input) -> Shape:
    """Return the shape of an input as the output has dimensions: (1,) and 0-d are one."""
    return step.shape if is_reshape(one.shape, step.shape) else one.shape


def common_shape(step: Step) -> Shape:
    """Return the shape of what is merged: the output's, or with ``overlap`` the part that all inputs have."""
    if step.policy != "overlap":
        return step.shape
    return tuple(min(sizes) for sizes in zip(*(shape_in(step, one) for one in step.inputs), strict=True))


def inner_places(places: Sequence[Place], shape: Shape) -> list[Place | None]:
    """Return the part of each block of an output that lies in its leading ``shape``, None where nothing does.

    Numbers and offsets (in elements) are those within that part: blocks are whole along all dimensions behind the one
    that they are cut along, so that these parts too follow each other.
    """
    boxes = [tuple((begin, min(end, size)) for (begin, end), size in zip(p.box, shape, strict=True)) for p in places]
    inside = iter(placed((box for box in boxes if _holds(box)), 1))
    return [next(inside) if _holds(box) else None for box in boxes]


def _holds(box: Box) -> bool:
    return all(begin < end for begin, end in box)


def aligns(step: Step) -> bool:
    """Whether all inputs of a merge can be made to fit its output by its policy."""
    shapes = [shape_in(step, one) for one in step.inputs]
    if any(len(shape) != len(step.shape) for shape in shapes):
        return False
    if step.policy == "vocab":
        return _goes_by_vocabularies(step, shapes)
    if step.policy == "slice":
        return all(h >= w for shape in shapes for h, w in zip(shape, step.shape, strict=True))
    if step.policy == "overlap":
        return step.keeper.shape == step.shape and next(blocks(common_shape(step), 1), None) is not None
    return step.policy == "" and all(shape == step.shape for shape in shapes)


def _goes_by_vocabularies(step: Step, shapes: Sequence[Shape]) -> bool:
    axis, every = step.axis, step.vocabularies
    if len(every) != len(shapes) or not 0 <= axis < len(step.shape):
        return False
    lengths = all(len(rows.rows) == step.shape[axis] for rows in every)
    return lengths and all(map(partial(_has_rows, step.shape, axis), shapes, every)) and _every_token_is_had(every)


def _has_rows(want: Shape, axis: int, shape: Shape, rows: Rows) -> bool:
    """Whether an input is as long as its vocabulary at least, and elsewhere like the output."""
    others = all(have == size for d, (have, size) in enumerate(zip(shape, want, strict=True)) if d != axis)
    return others and shape[axis] >= rows.size


def _every_token_is_had(every: Sequence[Rows]) -> bool:
    """Whether each row of the output comes from somewhere: none is the mean of several rows of one model."""
    if any(isinstance(row, tuple) and row for rows in every for row in rows.rows):
        return False
    lent = {place for rows in every for place, _ in rows.lent}
    tokens = len(every[0].rows) - every[0].padded
    had = zip(*(rows.rows[:tokens] for rows in every), strict=True)
    zeros = all(rows.new == "others or zero" for rows in every)
    return zeros or all(place in lent or any(row is not None for row in rows) for place, rows in enumerate(had))
