"""Inputs of a merge that have another shape than the output: what all have of them, and rows by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ops import Array, Box, blocks
from ..plan import Rows, Step
from .part import Place, placed

__all__ = ["Fill", "aligns", "common_shape", "filling", "inner_places"]

Shape = tuple[int, ...]


def common_shape(step: Step) -> Shape:
    """Return the shape of what is merged: the output's, or with ``overlap`` the part that all inputs have."""
    if step.policy != "overlap":
        return step.shape
    return tuple(min(sizes) for sizes in zip(*(one.shape for one in step.inputs), strict=True))


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
    shapes = [one.shape for one in step.inputs]
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
    expected = [(*step.shape[:axis], rows.size, *step.shape[axis + 1 :]) for rows in every]
    sizes = all(len(rows.rows) == step.shape[axis] for rows in every)
    return sizes and list(shapes) == expected and _every_token_is_had(every)


def _every_token_is_had(every: Sequence[Rows]) -> bool:
    if any(isinstance(row, tuple) for rows in every for row in rows.rows):
        return False
    return all(any(row is not None for row in rows) for rows in zip(*(one.rows for one in every), strict=True))


Fill = Callable[[list[Array], Box], list[Array]]
"""Gives each input of a part, in the dtype that is computed in, the rows of tokens that it lacks."""


@dataclass(frozen=True)
class _Others:
    """Which tokens each input has, and whether the last is the base."""

    has: Array
    has_base: bool
    axis: int

    def __call__(self, values: list[Array], box: Box) -> list[Array]:
        has = self.has[:, slice(*box[self.axis])]
        if has.all():
            return values
        along = [-1 if d == self.axis else 1 for d in range(len(box))]
        models = len(values) - self.has_base
        number = np.maximum(has[:models].sum(0), 1).astype(values[0].dtype).reshape(along)
        others = sum(values[1:models], values[0]) / number  # a row that a model lacks is zero in it
        if self.has_base:
            others = np.where(has[-1].reshape(along), values[-1], others)
        return [np.where(own.reshape(along), one, others) for own, one in zip(has, values, strict=True)]


def filling(step: Step) -> Fill | None:
    """Return what fills in the rows of tokens that inputs lack: the base's, else the mean of those that have them."""
    if step.policy != "vocab":
        return None
    has = np.array([[row is not None for row in rows.rows] for rows in step.vocabularies])
    return _Others(has, step.merge is not None and step.merge.base, step.axis)
