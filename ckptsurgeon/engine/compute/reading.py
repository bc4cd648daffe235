"""Reads parts of stored and derived tensors; the memory that this takes is bounded by the size of the part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import FormatError, PlanError
from ...formats.base.header import naming
from ...planning.plan.step import Step
from ...storage.read.base import File
from ...tensors.composition import leaves
from ...tensors.decoders._decoder import decode
from ...tensors.dtypes import DTYPES, contiguous_stride, reach
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
from ...tensors.ops.casts import CastLosses, cast, goes_to_zero, raw_dtype
from ...tensors.ops.means import added, exp_of, scaled
from ...tensors.ops.noise import with_noise
from ...tensors.ops.regions import Array, Box, box_shape, spanned
from ...util.text import escape
from .bands import BandedFiles, OpenFiles

if TYPE_CHECKING:
    from ...tensors.odd_scales.notes import OddScales

__all__ = [
    "Blockwise",
    "OutputBlock",
    "Part",
    "Seen",
    "cast_for",
    "named",
    "naming_scales",
    "numbered_blocks",
    "read_as",
    "read_derived",
    "read_number",
    "read_part",
    "relevant",
]

# The inputs of computed tensors, and the blocks of an output.

Part: TypeAlias = tuple[TensorInfo, OpenFiles]
"""An input of a step: the header of the tensor, and the open files of its checkpoint."""


@dataclass(frozen=True, slots=True)
class OutputBlock:
    """A block of an output tensor: its index, its offset in bytes, and its range along each dimension (``box``)."""

    index: int
    offset: int
    box: Box


Seen: TypeAlias = Callable[[int, Array], None]
"""A function that is called with the index of an input and the array that was read from it."""

Blockwise: TypeAlias = Callable[[OutputBlock, Seen | None], tuple[Array, CastLosses]]
"""A function that returns a block of an output tensor, and how many of its values became infinite, NaN or zero."""


def numbered_blocks(boxes: Iterable[Box], itemsize: int) -> Iterator[OutputBlock]:
    """Yield consecutive boxes as blocks with an index and an offset; an output element has ``itemsize`` bytes."""
    offset = 0
    for index, box in enumerate(boxes):
        yield OutputBlock(index, offset, box)
        offset += prod(box_shape(box)) * itemsize


# Parts of tensors that are derived from others.

SMALL_ELEMENTS = 1 << 18
"""A part of a reshaped tensor is read at once if it spans at most this many elements of the original tensor.

A part that spans more elements is also read at once if it spans at most ``SPARSE`` times as many elements as it has."""

Read = Callable[[TensorInfo, Box], Array]
"""A function that reads a part of a tensor, stored or derived."""


def read_derived(read: Read, info: TensorInfo, box: Box, odd: OddScales | None = None) -> Array:
    """Return the part ``box`` of a derived tensor, such as a slice, a concatenation, a sum or a cast of other tensors.

    ``read`` returns a part of one of these other tensors; it is called for each part that is needed. The names of
    quantised tensors with implausible scales are added to ``odd``.
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
    """Return the part ``box`` of a tensor that consists of elements of another tensor.

    ``made.runs`` are the runs of indices of these elements along one dimension. ``read`` returns a part of the other
    tensor.
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
    if len(pieces) <= FEW or (dim == 0 and spread > SPARSE):
        boxes = [(*box[:dim], piece, *box[dim + 1 :]) for piece in pieces or [(0, 0)]]
        return np.concatenate([read(made.of, one) for one in boxes], axis=dim)
    begin, end = box[0]
    rows = max(1, int((end - begin) * SPARSE / spread)) if dim and spread > SPARSE else max(1, end - begin)
    parts = []
    for row in range(begin, max(end, begin + 1), rows):  # a few rows at once, since much is read that is not taken
        own = ((row, min(row + rows, end)), *box[1:]) if dim else box
        whole = read(made.of, (*own[:dim], (low, high), *own[dim + 1 :]))
        parts.append(_picked(whole, [(a - low, b - low) for a, b in pieces], dim))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _picked(whole: Array, runs: Sequence[tuple[int, int]], dim: int) -> Array:
    """Return the elements of an array at ``runs`` of indices along a dimension.

    If all runs have the same length and begin at multiples of it, whole runs are copied, which is faster than single
    elements.
    """
    length, size = runs[0][1] - runs[0][0], whole.shape[dim]
    if length > 1 and size % length == 0 and all(b - a == length and a % length == 0 for a, b in runs):
        split = whole.reshape(*whole.shape[:dim], size // length, length, *whole.shape[dim + 1 :])
        made: Array = np.take(split, [a // length for a, _ in runs], axis=dim)
        return made.reshape(*whole.shape[:dim], len(runs) * length, *whole.shape[dim + 1 :])
    return np.take(whole, np.concatenate([np.arange(a, b) for a, b in runs]), axis=dim)


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


SPARSE = 4
"""A part of a strided tensor is read at once if the bytes that it spans are at most this many times its size."""
SMALL_BYTES = 8 << 20
"""A part of a strided tensor is read at once if it spans at most this many bytes."""


@contextmanager
def naming_scales(source: OpenFiles, info: TensorInfo) -> Iterator[None]:
    """Add the name of the file that has ``info`` to errors about its scales that the ``with`` block raises."""
    try:
        yield
    except FormatError as error:
        if error.rule != "scale":
            raise
        with naming(source.file(next(leaves(info)))):
            raise


def read_part(source: OpenFiles, info: TensorInfo, part: Box) -> Array:
    """Return a part of a tensor as a contiguous little-endian array of the type that ``raw_dtype`` returns.

    If torch saved the tensor as a conjugated or negated view, the values are conjugated or negated.
    """
    if info.made is not None:
        with naming_scales(source, info):
            return np.ascontiguousarray(read_derived(partial(read_part, source), info, part, source.odd_scales))
    if isinstance(source, BandedFiles):
        return source.read(info, part, partial(_read_stored, source.file(info), info))
    return _read_stored(source.file(info), info, part)


def read_as(source: OpenFiles, info: TensorInfo, part: Box) -> Array:
    """Return a part of a tensor as an array with the shape of ``part``.

    If the tensor has the shape (1,) and ``part`` the shape (), or the reverse, the one element is returned.
    """
    own = part if len(part) == len(info.shape) else tuple((0, size) for size in info.shape)
    return read_part(source, info, own).reshape(box_shape(part))


def read_number(source: Checkpoint, key: str) -> float | None:
    """Return the value of a tensor with one element; None if it is infinite or NaN."""
    info = source[key]
    values = read_part(source, info, tuple((0, size) for size in info.shape))
    number = float(cast(values, info.dtype, "float64")[0].reshape(-1)[0])
    return number if math.isfinite(number) else None


def _read_stored(file: File, info: TensorInfo, part: Box) -> Array:
    dtype = raw_dtype(info.dtype)
    shape = box_shape(part)
    assert info.storage is not None
    start = info.storage.offset + info.offset
    if info.stride is None and shape == info.shape:  # the usual case: the whole tensor
        return _resolved(_run(file, start, shape, dtype), info)
    stride = info.stride or contiguous_stride(info.shape)
    start += sum(begin * step for (begin, _), step in zip(part, stride, strict=True)) * dtype.itemsize
    array = _gather(file, start, shape, stride, dtype)
    return _resolved(array, info)


def _gather(file: File, start: int, shape: Sequence[int], stride: Sequence[int], dtype: Any) -> Array:
    """Return a strided array from a file as a contiguous array; its first element is at the byte ``start``.

    If the array spans few bytes or has few gaps, all spanned bytes are read at once. Otherwise the array is read in
    pieces along the dimension with the largest stride.
    """
    span, needed = reach(shape, stride) * dtype.itemsize, math.prod(shape) * dtype.itemsize
    if span == needed and contiguous_stride(shape) == tuple(stride):
        return _run(file, start, shape, dtype)
    if span <= max(SMALL_BYTES, SPARSE * needed) or max(shape, default=1) == 1:
        if span == 0:
            return np.empty(shape, dtype)
        data = np.empty(span // dtype.itemsize, dtype)
        file.readinto(start, data.view("u1").data)
        steps = [step * dtype.itemsize for step in stride]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, shape, steps))
    axis = max((i for i, size in enumerate(shape) if size > 1), key=lambda i: stride[i])
    inner = [1 if i == axis else size for i, size in enumerate(shape)]
    out = np.empty(shape, dtype)
    for i in range(shape[axis]):
        where = tuple(slice(i, i + 1) if d == axis else slice(None) for d in range(len(shape)))
        out[where] = _gather(file, start + i * stride[axis] * dtype.itemsize, inner, stride, dtype)
    return out


def _run(file: File, start: int, shape: Sequence[int], dtype: Any) -> Array:
    """Read and return an array of ``shape`` that is contiguous in the file and begins at the byte ``start``."""
    whole = np.empty(shape, dtype)
    file.readinto(start, whole.reshape(-1).view("u1").data)
    return whole


def _resolved(array: Array, info: TensorInfo) -> Array:
    """Return values in little-endian order. If torch saved a conjugated or negated view, conjugate or negate them."""
    if info.storage is not None and info.storage.big_endian and info.itemsize > 1:
        array = _swapped(array, info)
    if info.conj:
        array = array ^ np.uint32(0x8000_0000) if info.dtype == "complex32" else np.conj(array)
    if info.neg:
        array = _negated(array, info.dtype)
    return array


def _negated(array: Array, dtype: str) -> Array:
    """Return negated values; in types that numpy lacks, the sign bit is inverted.

    The bytes 0x00 and 0x80 of 8-bit floats are not changed, since some of these types have no -0.
    """
    if dtype == "complex32":
        return array ^ np.uint32(0x8000_8000)
    if dtype == "bfloat16":
        return array ^ np.uint16(0x8000)
    if dtype.startswith("float8"):
        return np.where(array & 0x7F == 0, array, array ^ np.uint8(0x80))
    return np.negative(array)


def _swapped(array: Array, info: TensorInfo) -> Array:
    if DTYPES[info.dtype].kind != "complex":
        return array.byteswap()
    half = array.reshape(-1).view(f"<u{info.itemsize // 2}").byteswap()  # reshape: a 0-d array cannot be viewed
    return half.view(array.dtype).reshape(array.shape)


# Casts from the source's dtype to the step's, with counts of the values that were lost.


def cast_for(step: Step, values: Array, dtype: str) -> tuple[Array, CastLosses]:
    """Return ``values`` of ``dtype`` cast to the step's dtype, and the counts of values that the cast lost.

    Raises PlanError if a value does not fit; the message begins with the key of the source tensor.
    """
    return named(step, cast, values, dtype)


def named(
    step: Step, how: Callable[[Array, str, str], tuple[Array, CastLosses]], values: Array, dtype: str
) -> tuple[Array, CastLosses]:
    """Return ``values`` of ``dtype`` converted to the step's dtype, and the counts of values that this has lost.

    ``how`` is the function that converts the values: ``cast`` or ``rounded``. Raises PlanError if a value does not
    fit; the message begins with the key of the source tensor.
    """
    try:
        return how(values, dtype, step.dtype)
    except PlanError as error:
        raise PlanError(f"{escape(step.source_key)}: {error.message}", hint=error.hint) from error


def relevant(lost: CastLosses, inputs: Iterable[TensorInfo], step: Step) -> CastLosses:
    """Return the counts ``lost``; the count of zeros becomes 0 if no cast from an input's dtype can make zeros.

    In that case, the zeros are results of the computation, not values that a narrower dtype has lost.
    """
    narrowed = any(goes_to_zero(info.dtype, step.dtype) for info in inputs)
    return lost if narrowed else CastLosses(lost.infinite)
