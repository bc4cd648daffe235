"""Aligns the inputs of a merge with an output of a different shape, and fills embedding rows that a model lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...planning.mismatch.policies import is_reshape
from ...planning.plan.compute import OF_BASE, Merge
from ...planning.plan.rows import VocabularyRows
from ...planning.plan.step import Input, Step
from ...tensors.ops.regions import Array, Box, blocks
from .reading import OutputBlock, numbered_blocks

__all__ = ["MissingRowFiller", "Read", "aligns", "inner_blocks", "overlap_of"]

Shape = tuple[int, ...]


def shape_in(step: Step, one: Input) -> Shape:
    """Return the shape in which the input ``one`` is read: its own shape, except for tensors of one element.

    If the input has the shape (1,) and the output the shape (), or the reverse, the input is read in the output's
    shape.
    """
    return step.shape if one.shape != step.shape and is_reshape(one.shape, step.shape) else one.shape


def overlap_of(step: Step) -> Shape:
    """Return the shape of the region that all inputs have: along each dimension, the smallest size of an input."""
    return tuple(min(sizes) for sizes in zip(*(shape_in(step, one) for one in step.combined), strict=True))


def inner_blocks(places: Sequence[OutputBlock], shape: Shape) -> list[OutputBlock | None]:
    """Return the part of each output block that is within ``shape``; None for a block that is outside.

    ``shape`` is the shape of a region that begins at index 0 of the output along each dimension. The index and the
    offset of a returned block (in elements, not bytes) are relative to this region. Each returned block is contiguous
    in the region, because an output block is a range of one dimension and contains all later dimensions whole.
    """
    boxes = [tuple((begin, min(end, size)) for (begin, end), size in zip(p.box, shape, strict=True)) for p in places]
    inside = iter(numbered_blocks((box for box in boxes if _holds(box)), 1))
    return [next(inside) if _holds(box) else None for box in boxes]


def _holds(box: Box) -> bool:
    return all(begin < end for begin, end in box)


def aligns(step: Step) -> bool:
    """Return whether the policy of a merge can align all inputs with the output.

    If the merge uses statistics of the models, such as Gram matrices, their shapes must fit the output, too.
    """
    if step.merge is not None and step.merge.statistics and not _fits_statistics(step, step.merge):
        return False
    shapes = [shape_in(step, one) for one in step.combined]
    if any(len(shape) != len(step.shape) for shape in shapes):
        return False
    if step.policy == "vocab":
        return _goes_by_vocabularies(step, shapes)
    if step.policy == "slice":
        return all(h >= w for shape in shapes for h, w in zip(shape, step.shape, strict=True))
    if step.policy == "overlap":
        return step.keeper.shape == step.shape and next(blocks(overlap_of(step), 1), None) is not None
    return step.policy == "" and all(shape == step.shape for shape in shapes)


def _fits_statistics(step: Step, merge: Merge) -> bool:
    """Return whether a step has the statistics of its models or base, in the shape that the merge method needs.

    The shape depends on the shape of the merged tensor.
    """
    statistics = step.inputs[len(step.combined) :]
    wanted = 1 if merge.statistics in OF_BASE else len(step.combined)
    return len(statistics) == wanted and not step.policy and merge.fits(step.shape, [one.shape for one in statistics])


def _goes_by_vocabularies(step: Step, shapes: Sequence[Shape]) -> bool:
    axis, every = step.axis, step.vocabularies
    if len(every) != len(shapes) or not 0 <= axis < len(step.shape):
        return False
    lengths = all(len(rows.rows) == step.shape[axis] for rows in every)
    return lengths and all(map(partial(_has_rows, step.shape, axis), shapes, every)) and _can_fill_every_row(every)


def _has_rows(want: Shape, axis: int, shape: Shape, rows: VocabularyRows) -> bool:
    """Return whether ``shape`` has a row for each token of ``rows``, and is equal to ``want`` along the other axes.

    ``shape`` is the shape of an input, ``want`` the shape of the output, ``axis`` the axis of the vocabulary.
    """
    others = all(have == size for d, (have, size) in enumerate(zip(shape, want, strict=True)) if d != axis)
    return others and shape[axis] >= rows.size


def _can_fill_every_row(every: Sequence[VocabularyRows]) -> bool:
    """Return whether each row of the output can be filled, and no row is the mean of several rows of one model.

    A row can be filled if at least one model has its token. If all models have the setting "others or zero" for new
    tokens, any row can be filled: if no model has the token, the row gets zeros.
    """
    if any(isinstance(row, tuple) and row for rows in every for row in rows.rows):
        return False
    lent = {place for rows in every for place, _ in rows.lent}
    tokens = len(every[0].rows) - every[0].padded
    had = zip(*(rows.rows[:tokens] for rows in every), strict=True)
    zeros = all(rows.new == "others or zero" for rows in every)
    return zeros or all(place in lent or any(row is not None for row in rows) for place, rows in enumerate(had))


# Rows that some inputs of a merge lack are filled: with the row of one input, with the mean of the other inputs' rows,
# or, for padding, with the mean of all rows.

Read = Callable[[int, VocabularyRows, Box], Array]
"""A function that reads a part of the input with an index; its rows are put into the order of ``VocabularyRows``.

The returned array has the dtype of computation. Rows that the input lacks are 0."""

ELEMENTS = 1 << 18
"""The most elements, of all inputs together, that are in memory at once while mean rows are computed."""


class MissingRowFiller:
    """Fills the rows of an embedding or output layer for tokens that some inputs of a merge lack."""

    def __init__(self, step: Step, read: Read) -> None:
        self._every, self._axis, self._read = step.vocabularies, step.axis, read
        self._has_base = step.merge is not None and step.merge.base
        self._has = np.array([[row is not None for row in rows.rows] for rows in self._every])
        self._lent = {number: _lent(rows) for number, rows in enumerate(self._every) if rows.lent}
        self._tokens = step.shape[step.axis] - self._every[0].padded
        self._means = self._mean_rows(step.shape) if self._every[0].padded else []

    def __call__(self, values: Sequence[Array], box: Box) -> list[Array]:
        """Return ``values`` with all missing rows filled.

        ``values`` has the part ``box`` of each input; the rows that an input lacks are 0.
        """
        begin, end = box[self._axis]
        filled = self._filled(values, box)
        if end <= self._tokens:
            return filled
        beyond = self._along(np.arange(begin, end) >= self._tokens, len(box))
        return [np.where(beyond, mean[self._across(box)], one) for mean, one in zip(self._means, filled, strict=True)]

    def _filled(self, values: Sequence[Array], box: Box) -> list[Array]:
        """Return ``values`` with the missing rows of tokens filled; padding rows are left as they are."""
        has = self._has[:, slice(*box[self._axis])]
        if has.all():
            return list(values)
        others = self._others(values, has)
        for number, rows in self._lent.items():
            there = np.array([row is not None for row in rows.rows[slice(*box[self._axis])]])
            if there.any():
                others = np.where(self._along(there, len(box)), self._read(number, rows, box), others)
        return [np.where(self._along(own, len(box)), one, others) for own, one in zip(has, values, strict=True)]

    def _others(self, values: Sequence[Array], has: Array) -> Array:
        """Return, for each token, the row that models without the token get.

        It is the row of the base model. If there is no base model, or if it lacks the token, it is the mean of the rows
        of all models that have the token. ``has[i, j]`` is whether the input ``i`` has the token ``j``.
        """
        models, dimensions = len(values) - self._has_base, values[0].ndim
        number = np.maximum(has[:models].sum(0), 1).astype(values[0].dtype)
        total = sum(values[1:models], values[0])  # rows that a model lacks are zero
        others: Array = total / self._along(number, dimensions)
        return np.where(self._along(has[-1], dimensions), values[-1], others) if self._has_base else others

    def _mean_rows(self, shape: Sequence[int]) -> list[Array]:
        """Return the mean row of each input over all tokens, summed in double precision."""
        tokens = [self._tokens if d == self._axis else size for d, size in enumerate(shape)]
        totals = [np.zeros([1 if d == self._axis else size for d, size in enumerate(shape)]) for _ in self._every]
        dtype = np.dtype("f8")
        for box in blocks(tokens, max(1, ELEMENTS // len(self._every))):
            values = [self._read(number, rows, box) for number, rows in enumerate(self._every)]
            dtype = values[0].dtype
            for total, one in zip(totals, self._filled(values, box), strict=True):
                total[self._across(box)] += one.sum(axis=self._axis, keepdims=True, dtype="f8")
        return [(total / self._tokens).astype(dtype) for total in totals]

    def _along(self, row: Array, dimensions: int) -> Array:
        """Return ``row``, which has one value per token, in a shape that broadcasts along the vocabulary axis."""
        return row.reshape([-1 if d == self._axis else 1 for d in range(dimensions)])

    def _across(self, box: Box) -> tuple[slice, ...]:
        """Return the slices that select, from a mean row, the values that belong to the part ``box``.

        A mean row has the size 1 along the axis of the vocabulary.
        """
        return tuple(slice(0, 1) if d == self._axis else slice(*ends) for d, ends in enumerate(box))


def _lent(rows: VocabularyRows) -> VocabularyRows:
    """Return ``rows`` of one model, with None in place of each row that no other model needs.

    Another model needs a row if it lacks the token of this row (``VocabularyRows.lent``).
    """
    lent = dict(rows.lent)
    return replace(rows, rows=tuple(lent.get(place) for place in range(len(rows.rows))))
