"""Reads parts of tensors that are made of others, in memory bounded by the part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...tensors.composition import Cast, Cut, Joined, Permuted, Reshaped, Scaled, Summed
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array, Box, box_shape
from ...tensors.ops.casts import cast
from ...tensors.ops.means import added, scaled
from ...tensors.strides import contiguous_stride

__all__ = ["read_made"]

SPARSE = 4
"""Elements are read together with those between them when these are at most this many times as many …"""
SMALL = 1 << 18
"""… or when all are at most this many."""

Read = Callable[[TensorInfo, Box], Array]
"""Reads a part of a tensor, stored or made."""


def read_made(read: Read, info: TensorInfo, box: Box) -> Array:
    """Return a part of a tensor that is made of others, which ``read`` reads."""
    made = info.made
    if isinstance(made, Cut):
        return read(made.of, tuple((a + at, b + at) for (a, b), at in zip(box, made.begin, strict=True)))
    if isinstance(made, Permuted):
        theirs = dict(zip(made.dims, box, strict=True))
        return read(made.of, tuple(theirs[d] for d in range(len(box)))).transpose(made.dims)
    if isinstance(made, Joined):
        return np.concatenate([read(*one) for one in _overlapping(made, box)], axis=made.dim)
    if isinstance(made, Scaled):
        return scaled(read(made.of, box), info.dtype, made.factor)
    if isinstance(made, Summed):
        return added([read(one, box) for one in made.of], info.dtype)
    if isinstance(made, Cast):
        return cast(read(made.of, box), made.of.dtype, info.dtype)[0]
    assert isinstance(made, Reshaped)
    return _reshaped(read, made.of, info.shape, box)


def _overlapping(made: Joined, box: Box) -> Iterator[tuple[TensorInfo, Box]]:
    """Yield the tensors that a part of their sequence reaches, and the part of each."""
    begin, end = box[made.dim]
    at = 0
    for one in made.of:
        size = one.shape[made.dim]
        first, last = max(begin - at, 0), min(end - at, size)
        if first < last:
            yield one, (*box[: made.dim], (first, last), *box[made.dim + 1 :])
        at += size
    if begin == end:
        yield made.of[0], (*box[: made.dim], (0, 0), *box[made.dim + 1 :])


def _reshaped(read: Read, of: TensorInfo, shape: Sequence[int], box: Box) -> Array:
    """Return a part of a tensor in another shape: its elements lie in ranges of the row-major order."""
    wanted, stride = box_shape(box), contiguous_stride(shape)
    needed = math.prod(wanted)
    begin = sum(first * step for (first, _), step in zip(box, stride, strict=True))
    span = 1 + sum((size - 1) * step for size, step in zip(wanted, stride, strict=True)) if needed else 0
    if span <= max(SPARSE * needed, SMALL):
        flat = _flat(read, of, begin, begin + span)
        steps = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat, wanted, steps) if needed else flat.reshape(wanted)
    axis = next(d for d, size in enumerate(wanted) if size > 1)
    first, last = box[axis]
    rows = (
        _reshaped(read, of, shape, (*box[:axis], (index, index + 1), *box[axis + 1 :])) for index in range(first, last)
    )
    return np.concatenate(list(rows), axis=axis)


def _flat(read: Read, of: TensorInfo, begin: int, end: int) -> Array:
    """Return elements ``begin`` to ``end`` of a tensor in row-major order."""
    pieces = [np.ascontiguousarray(read(of, box)).reshape(-1) for box in _boxes(of.shape, begin, end)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _boxes(shape: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """Cut a range of the row-major order into parts of the tensor: at most two for each dimension and one."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if begin == end or not inner:
        yield ((0, 0), *((0, size) for size in shape[1:]))
        return
    (row, skipped), (last, taken) = divmod(begin, inner), divmod(end, inner)
    if row == last:
        yield from _within(shape, row, skipped, taken)
        return
    if skipped:
        yield from _within(shape, row, skipped, inner)
        row += 1
    if row < last:
        yield ((row, last), *((0, size) for size in shape[1:]))
    if taken:
        yield from _within(shape, last, 0, taken)


def _within(shape: Sequence[int], row: int, begin: int, end: int) -> Iterator[Box]:
    for box in _boxes(shape[1:], begin, end):
        yield ((row, row + 1), *box)
