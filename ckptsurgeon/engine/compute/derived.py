"""Reads parts of derived tensors, such as slices, concatenations, sums and casts of other tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...tensors.decoders._decoder import decode
from ...tensors.dtypes import contiguous_stride
from ...tensors.encoders._encode import encode
from ...tensors.info import (
    Averaged,
    Cast,
    Concatenated,
    Decoded,
    Encoded,
    ExpScaled,
    Filled,
    Given,
    Noisy,
    Permuted,
    Reshaped,
    Scaled,
    Shifted,
    Sliced,
    Summed,
    Taken,
    TensorInfo,
)
from ...tensors.ops.casts import cast, raw_dtype
from ...tensors.ops.means import added, exp_of, scaled
from ...tensors.ops.noise import with_noise
from ...tensors.ops.regions import SPARSE, Array, Box, box_shape, spanned

if TYPE_CHECKING:
    from ...tensors.odd_scales.notes import OddScales

__all__ = ["read_derived"]

SMALL_ELEMENTS = 1 << 18
"""A part of a reshaped tensor is read at once if it spans at most this many elements of the original tensor.

A part that spans more elements is also read at once if it spans at most ``SPARSE`` times as many elements as it has."""

Read = Callable[[TensorInfo, Box], Array]
"""A function that reads a part of a tensor, stored or derived."""


def read_derived(read: Read, info: TensorInfo, box: Box, odd: OddScales | None = None) -> Array:
    """Return the part ``box`` of a derived tensor, such as a slice, a concatenation, a sum or a cast of other tensors.

    ``read`` returns a part of one of these other tensors; it is called for each part that is needed. If ``odd`` is
    given, the names of quantised tensors with implausible scales are added to it.
    """
    made = info.made
    if isinstance(made, Decoded):
        return decode(read, info, box, odd)
    if isinstance(made, Encoded):
        return encode(read, info, box)
    if isinstance(made, Given):
        values = np.array(made.values, raw_dtype(info.dtype)).reshape(info.shape)
        return values[tuple(slice(*span) for span in box)]
    if isinstance(made, Filled):
        one, _ = cast(np.full(1, made.value), "float64", info.dtype)
        return np.full(box_shape(box), one[0], one.dtype)
    if isinstance(made, Sliced):
        return read(made.of, tuple((a + at, b + at) for (a, b), at in zip(box, made.begin, strict=True)))
    if isinstance(made, Taken):
        return _taken(read, made, box)
    if isinstance(made, Permuted):
        theirs = dict(zip(made.dims, box, strict=True))
        return read(made.of, tuple(theirs[d] for d in range(len(box)))).transpose(made.dims)
    if isinstance(made, Concatenated):
        return np.concatenate([read(*one) for one in _overlapping(made, box)], axis=made.dim)
    if isinstance(made, Scaled):
        return scaled(read(made.of, box), info.dtype, made.factor)
    if isinstance(made, ExpScaled):
        of, exponent = made.of
        number = read(exponent, tuple((0, size) for size in exponent.shape))
        return scaled(read(of, box), info.dtype, exp_of(number, exponent.dtype))
    if isinstance(made, Shifted):
        wide = cast(read(made.of, box), made.of.dtype, "float64")[0] + made.by
        return wide.astype(raw_dtype(info.dtype))
    if isinstance(made, Noisy):
        return with_noise(read(made.of, box), info.dtype, info.shape, box, made.dim, made.runs, made.by, made.seed)
    if isinstance(made, Summed):
        return added([read(one, box) for one in made.of], info.dtype, is_mean=made.is_mean, weights=made.weights)
    if isinstance(made, Averaged):
        size = made.of.shape[made.dim]
        whole = read(made.of, (*box[: made.dim], (0, size), *box[made.dim + 1 :]))
        return added(np.split(whole, size, made.dim), info.dtype, is_mean=True)
    if isinstance(made, Cast):
        return cast(read(made.of, box), made.of.dtype, info.dtype)[0]
    assert isinstance(made, Reshaped)
    return _reshaped(read, made.of, info.shape, box)


def _overlapping(made: Concatenated, box: Box) -> Iterator[tuple[TensorInfo, Box]]:
    """Yield (tensor, its part within ``box``) for each tensor of a concatenation that overlaps ``box``."""
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


FEW = 8
"""Up to this many runs of indices are read one by one.

More runs are read together, with the elements between them, unless there are too many of these elements.
"""


def _taken(read: Read, made: Taken, box: Box) -> Array:
    """Return the part ``box`` of a tensor that consists of selected elements of the tensor ``made.of``.

    ``made.runs`` are the selected ranges of indices along one dimension. ``read`` returns a part of ``made.of``.
    """
    dim, (first, last) = made.dim, box[made.dim]
    pieces, at = [], 0
    for begin, end in made.runs:
        low, high = max(first - at, 0), min(last - at, end - begin)
        if low < high:
            pieces.append((begin + low, begin + high))
        at += end - begin
        if at >= last:
            break
    low, high = min((a for a, _ in pieces), default=0), max((b for _, b in pieces), default=0)
    spread = (high - low) / max(last - first, 1)
    is_repeated = sum(b - a for a, b in pieces) > high - low  # then each element is read and computed only once
    if (len(pieces) <= FEW and not is_repeated) or (dim == 0 and spread > SPARSE):
        boxes = [(*box[:dim], piece, *box[dim + 1 :]) for piece in pieces or [(0, 0)]]
        return np.concatenate([read(made.of, one) for one in boxes], axis=dim)
    begin, end = box[0]
    rows = max(1, int((end - begin) * SPARSE / spread)) if dim and spread > SPARSE else max(1, end - begin)
    parts = []
    for row in range(
        begin, max(end, begin + 1), rows
    ):  # a few rows at once, since many more elements are read than are taken
        own = ((row, min(row + rows, end)), *box[1:]) if dim else box
        whole = read(made.of, (*own[:dim], (low, high), *own[dim + 1 :]))
        parts.append(_picked(whole, [(a - low, b - low) for a, b in pieces], dim))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _picked(whole: Array, runs: Sequence[tuple[int, int]], dim: int) -> Array:
    """Return the elements of an array in ``runs``: ranges (begin, end) of indices along the dimension ``dim``.

    If all ranges consist of blocks of the same length, whole blocks are copied, which is faster than single elements.
    """
    size = whole.shape[dim]
    length = math.gcd(size, *(index for run in runs for index in run))
    blocks = np.concatenate([np.arange(a // length, b // length) for a, b in runs])
    split = whole.reshape(*whole.shape[:dim], size // length, length, *whole.shape[dim + 1 :])
    made: Array = np.take(split, blocks, axis=dim)
    return made.reshape(*whole.shape[:dim], len(blocks) * length, *whole.shape[dim + 1 :])


def _reshaped(read: Read, of: TensorInfo, shape: Sequence[int], box: Box) -> Array:
    """Return the part ``box`` of the tensor ``of`` reshaped to ``shape``; ``read`` returns a part of ``of``."""
    wanted, stride = box_shape(box), contiguous_stride(shape)
    needed = math.prod(wanted)
    begin = sum(first * step for (first, _), step in zip(box, stride, strict=True))
    span = 1 + sum((size - 1) * step for size, step in zip(wanted, stride, strict=True)) if needed else 0
    if span <= max(SPARSE * needed, SMALL_ELEMENTS):
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
    """Return the elements ``begin`` to ``end`` of a tensor, in row-major order, as a flat array."""
    pieces = [np.ascontiguousarray(read(of, box)).reshape(-1) for box in spanned(of.shape, begin, end)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
