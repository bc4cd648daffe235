"""Moves rows of embeddings between vocabularies, and overwrites initial values with the values of a source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...planning.mismatch.policy_text import parts_of
from ...planning.plan.rows import OMP, VocabularyRows
from ...planning.plan.step import Step
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import CastLosses, cast, raw_dtype
from ...tensors.ops.means import average, rounded
from ...tensors.ops.regions import Array, Box, blocks, box_shape, overlap_shape
from .column_bands import OpenFiles
from .reading import Blockwise, OutputBlock, Part, Seen, cast_for, read_part

__all__ = [
    "copying_rows", "gathered", "laid_over", "mapped_block", "mapped_boxes", "overlaid_block", "overlaid_boxes",
    "overlaid_part", "overlay",
]  # fmt: skip

# The rows of a tensor for another vocabulary: each row is a row of the source, a mean of source rows, or zero.

ELEMENTS = 1 << 18
"""How many elements are read at once to compute the mean of all rows."""

NEAR = 8
"""Rows along an axis other than the first are read at once, as one range, if the range is not too long.

The range may have at most this many times as many rows as are needed.
"""


def mapped_boxes(step: Step, limit: int) -> Iterator[Box]:
    """Yield the blocks of a destination tensor whose rows all come from the source.

    A block has at most ``limit`` elements, or is a single row.
    """
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


def mapped_block(step: Step, info: TensorInfo, source: OpenFiles, box: Box) -> Array:
    """Return the part ``box`` of a tensor whose rows are moved from one vocabulary to another.

    The array has the ``raw_dtype`` of the source's dtype. A row that has no source row is the mean of all source rows
    if ``rows.new`` is "mean", or if ``rows.new`` is "omp" and the row is padding. Otherwise it is zero: the caller
    fills it.
    """
    rows, axis = _rows(step), step.axis
    begin, end = box[axis]
    out = gathered(rows, axis, info, source, box)
    for place in range(begin, end):
        these = rows.rows[place]
        if isinstance(these, tuple) and these:
            parts = ((read_part(source, info, _part(box, axis, row, 1)), info.dtype) for row in these)
            out[_along(box, axis, place - begin, 1)] = rounded(*average(parts, ()), info.dtype)[0]
        elif these is None and (rows.new == "mean" or (rows.new == OMP and place >= len(rows.rows) - rows.padded)):
            inner = tuple(slice(0, 1) if d == axis else slice(*ends) for d, ends in enumerate(box))
            out[_along(box, axis, place - begin, 1)] = _mean(step, info, source)[inner]
    return out


def gathered(rows: VocabularyRows, axis: int, info: TensorInfo, source: OpenFiles, box: Box) -> Array:
    """Return the part ``box`` of a tensor whose rows along ``axis`` are copied from the rows of a source tensor.

    ``rows.rows`` has one entry for each row of the output. If the entry is an integer, the source row with this index
    is copied. For other entries, such as several source rows, the result has zeros.
    """
    begin, end = box[axis]
    found = [(place - begin, row) for place in range(begin, end) if isinstance(row := rows.rows[place], int)]
    out = np.zeros(box_shape(box), raw_dtype(info.dtype))
    if not found:
        return out
    places, of = (list(numbers) for numbers in zip(*found, strict=True))
    low, high = min(of), max(of) + 1
    if axis and high - low <= NEAR * len(of):  # rows along a later axis are read at once
        part = read_part(source, info, _part(box, axis, low, high - low))
        out[_these(box, axis, places)] = part[_these(box, axis, [row - low for row in of])]
        return out
    for place, row, number in rows.runs(begin, end):
        out[_along(box, axis, place - begin, number)] = read_part(source, info, _part(box, axis, row, number))
    return out


def copying_rows(step: Step, stored: Part, compute: Blockwise) -> Blockwise:
    """Return a function that computes blocks as ``compute`` does, but copies from ``stored`` the rows of the source.

    ``compute`` computes a part of a quantised tensor, such as its codes or scales; ``stored`` is the same part of the
    source's tensor. An output row that is one row of the source is copied, and so keeps its bytes. The rows of a part
    are independent of each other.
    """
    rows, (info, source) = _rows(step), stored

    def block(place: OutputBlock, seen: Seen | None = None) -> tuple[Array, CastLosses]:
        values, lost = compute(place, seen)
        (begin, end), shape = place.box[0], box_shape(place.box)
        copied = [row - begin for row in range(begin, end) if isinstance(rows.rows[row], int)]
        values = np.array(values).reshape(shape)
        own = gathered(rows, 0, info, source, place.box[: len(info.shape)])  # [rows] and [rows, 1] have the same bytes
        values[copied] = own.reshape(shape)[copied]
        return values, lost

    return block


def _rows(step: Step) -> VocabularyRows:
    assert step.rows is not None  # ensured by check_step
    return step.rows


def _part(box: Box, axis: int, row: int, number: int) -> Box:
    return tuple((row, row + number) if d == axis else ends for d, ends in enumerate(box))


def _along(box: Box, axis: int, place: int, number: int) -> tuple[slice, ...]:
    return tuple(slice(place, place + number) if d == axis else slice(None) for d in range(len(box)))


def _these(box: Box, axis: int, rows: list[int]) -> tuple[slice | list[int], ...]:
    return tuple(rows if d == axis else slice(None) for d in range(len(box)))


def _mean(step: Step, info: TensorInfo, source: OpenFiles) -> Array:
    """Return the mean of all rows of a source tensor except rows of padding; the mean is cached in ``step.rows``."""
    rows = _rows(step)
    known = (step.source, step.source_key)
    if known not in rows.means:
        number = info.shape[step.axis] - rows.unlisted
        rows.means[known] = rounded(*_mean_along(step.axis, info, source, number), info.dtype)[0]
    found: Array = rows.means[known]
    return found


def _mean_along(axis: int, info: TensorInfo, source: OpenFiles, number: int) -> tuple[Array, str]:
    """Return the mean of a tensor's first ``number`` rows along an axis, and the dtype of the mean.

    The tensor is read in blocks.
    """
    shape: Sequence[int] = [1 if d == axis else size for d, size in enumerate(info.shape)]
    total, wide = None, "float64"
    taken = tuple(number if d == axis else size for d, size in enumerate(info.shape))
    for box in blocks(taken, ELEMENTS):
        values, wide = average([(read_part(source, info, box), info.dtype)], ())
        if total is None:
            total = np.zeros(shape, values.dtype)
        inner = tuple(slice(0, 1) if d == axis else slice(*ends) for d, ends in enumerate(box))
        total[inner] += values.sum(axis=axis, keepdims=True)
    assert total is not None
    return total / number, wide


# Overwrites initial values of a tensor, or of a block of it, with the part of the source that fits the output.

BLOCK_BYTES = 2 << 20
"""The approximate number of bytes that are read at once."""


def overlay(step: Step, info: TensorInfo, source: OpenFiles, initial: Array) -> CastLosses:
    """Overwrite ``initial`` with the values that the source has; return the counts of values that the cast lost."""
    lost = CastLosses()
    limit = max(1, BLOCK_BYTES // max(initial.itemsize, info.itemsize))
    for box in overlaid_boxes(step, info, limit):
        values = overlaid_part(step, info, source, box)
        values, more = cast_for(step, values, info.dtype)
        initial[_slices(box)] = values.reshape(box_shape(box))
        lost += more
    return lost


def overlaid_boxes(step: Step, info: TensorInfo, limit: int) -> Iterator[Box]:
    """Yield the parts of a destination tensor that come from the source, of about ``limit`` elements each."""
    if step.op == "map":
        yield from mapped_boxes(step, limit)
        return
    parts, dim = parts_of(step.policy)
    if parts == 1:
        yield from blocks(overlap_shape(info.shape, step.shape), limit)
        return
    old, new = info.shape[dim] // parts, step.shape[dim] // parts
    shape = tuple(old if d == dim else size for d, size in enumerate(overlap_shape(info.shape, step.shape)))
    for part in range(parts):
        for box in blocks(shape, limit):
            yield _moved(box, dim, part * new)


def overlaid_part(step: Step, info: TensorInfo, source: OpenFiles, box: Box) -> Array:
    """Return the values of the source for ``box``, a part of the destination's tensor, as the source stores them.

    ``info`` is the source's tensor. ``box`` comes from ``overlaid_boxes``: all its values come from the source.
    """
    if step.op == "map":
        return mapped_block(step, info, source, box)
    return read_part(source, info, next(theirs for _, theirs in _from_source(step, info, box)))


def _moved(box: Box, dim: int, by: int) -> Box:
    return tuple((begin + by, end + by) if d == dim else (begin, end) for d, (begin, end) in enumerate(box))


def _from_source(step: Step, info: TensorInfo, box: Box) -> Iterator[tuple[Box, Box]]:
    """Yield (part of ``box``, the same values in the source) for each part of ``box`` whose values the source has.

    Both are ranges of indices: the first in the output, the second in the source tensor ``info``.
    """
    parts, dim = parts_of(step.policy)
    sizes = [size // parts if d == dim else size for d, size in enumerate(info.shape)]
    for part in range(parts):
        at = part * (step.shape[dim] // parts) if parts > 1 else 0
        own = _moved(box, dim, -at)
        inside = tuple((max(begin, 0), min(end, size)) for (begin, end), size in zip(own, sizes, strict=True))
        if all(begin < end for begin, end in inside):
            yield _moved(inside, dim, at), _moved(inside, dim, part * sizes[dim] if parts > 1 else 0)


def overlaid_block(step: Step, origin: Part, initial: Part, box: Box) -> tuple[Array, CastLosses]:
    """Return the part ``box`` of a tensor, and the counts of values that casts lost.

    Values come from the source tensor ``origin`` if it has them, else from ``initial``, the tensor of the destination's
    checkpoint.
    """
    kept, keeper = initial
    return laid_over(step, origin, np.array(read_part(keeper, kept, box)), kept.dtype, box)


def laid_over(step: Step, origin: Part | None, initial: Array, dtype: str, box: Box) -> tuple[Array, CastLosses]:
    """Return the part ``box`` of a tensor, and the counts of values that casts lost.

    The part has the values ``initial``, of the dtype ``dtype``, overwritten by the values that ``origin`` has. If the
    step has the dtype ``dtype``, this happens in place.
    """
    values, lost = cast(initial, dtype, step.dtype)
    if origin is None:
        return values, lost
    info, source = origin
    values = values.reshape(box_shape(box))
    if step.op == "map":
        laid, more = cast_for(step, mapped_block(step, info, source, box), info.dtype)
        here = _given(step, box)
        values[here] = laid.reshape(box_shape(box))[here]
        return values, lost + more
    for inside, theirs in _from_source(step, info, box):
        laid, more = cast_for(step, read_part(source, info, theirs), info.dtype)
        at = tuple(slice(begin - a, end - a) for (begin, end), (a, _) in zip(inside, box, strict=True))
        values[at] = laid.reshape(box_shape(inside))
        lost += more
    return values, lost


def _given(step: Step, box: Box) -> tuple[slice | list[int], ...]:
    """Return an index that selects the rows that come from the source, in an array with the values of ``box``."""
    assert step.rows is not None  # ensured by check_step
    begin, end = box[step.axis]
    rows = [place for place, row in enumerate(step.rows.rows[begin:end]) if row is not None]
    return tuple(rows if d == step.axis else slice(None) for d in range(len(box)))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in box)
