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
from ...storage.read.base import File
from ...tensors.composition import leaves
from ...tensors.dtypes import DTYPES, contiguous_stride, reach
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import CastLosses, cast, goes_to_zero, raw_dtype
from ...tensors.ops.regions import SPARSE, Array, Box, box_shape
from ...util.text import escape
from .column_bands import BandedFiles, OpenFiles

if TYPE_CHECKING:
    from ...planning.plan.step import Step

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
        from .derived import read_derived  # most tensors are stored

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
    """Return values in little-endian order; if torch saved a conjugated or negated view, conjugate or negate them."""
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
