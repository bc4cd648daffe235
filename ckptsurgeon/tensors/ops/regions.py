"""Computes with boxes in a tensor: the shape of a box, and the boxes into which a tensor is divided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SPARSE", "Array", "Box", "blocks", "box_shape", "overlap_shape", "spanned"]

Array: TypeAlias = npt.NDArray[Any]
Box: TypeAlias = tuple[tuple[int, int], ...]
"""A box in a tensor: (begin, end) along each dimension."""

SPARSE = 4
"""A part of a tensor is read at once if what it spans is at most this many times its size."""


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of a box, which is a range (begin, end) along each dimension."""
    return tuple(end - begin for begin, end in box)


def overlap_shape(source: Sequence[int], destination: Sequence[int]) -> tuple[int, ...]:
    """Return the largest shape that fits in both shapes: the smaller size along each dimension."""
    return tuple(min(s, d) for s, d in zip(source, destination, strict=True))


def blocks(shape: Sequence[int], limit: int) -> Iterator[Box]:
    """Yield boxes of at most ``limit`` elements that together cover a tensor, each contiguous in memory.

    A box has one index along each of the first dimensions, a range along the next dimension, and all of the remaining
    dimensions.
    """
    if 0 in shape:
        return
    if math.prod(shape) <= limit:
        yield tuple((0, size) for size in shape)
        return
    cut = 0
    while cut < len(shape) and math.prod(shape[cut + 1 :]) > limit:
        cut += 1
    if cut == len(shape):
        cut = max(0, len(shape) - 1)
    tail = tuple((0, size) for size in shape[cut + 1 :])
    rows = max(1, limit // max(1, math.prod(shape[cut + 1 :])))
    for index in np.ndindex(*shape[:cut]):
        head = tuple((i, i + 1) for i in index)
        if cut >= len(shape):
            yield head
            continue
        for begin in range(0, shape[cut], rows):
            yield (*head, (begin, min(begin + rows, shape[cut])), *tail)


def spanned(shape: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """Yield as few boxes as possible that together contain the elements with flat indices from ``begin`` up to ``end``.

    Flat indices and boxes are in row-major order.
    """
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
    for box in spanned(shape[1:], begin, end):
        yield ((row, row + 1), *box)
