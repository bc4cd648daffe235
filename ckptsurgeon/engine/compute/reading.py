"""Reads parts of a tensor from its file, whatever its strides and byte order, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.base import File
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array, Box, box_shape
from ...tensors.ops.casts import cast, raw_dtype
from ...tensors.strides import contiguous_stride, reach
from .composed import read_made

__all__ = ["read_as", "read_number", "read_part"]

SPARSE = 4
"""A part is read in one go when what lies between its elements is at most this many times its size …"""
SMALL = 8 << 20
"""… or when all of it is at most this many bytes."""


def read_part(source: Checkpoint, info: TensorInfo, part: Box) -> Array:
    """Return a part of a tensor as an array of ``raw_dtype``, contiguous, little-endian, bits resolved."""
    if info.made is not None:
        return np.ascontiguousarray(read_made(lambda one, box: read_part(source, one, box), info, part))
    return _read_stored(source.file(info), info, part)


def read_as(source: Checkpoint, info: TensorInfo, part: Box) -> Array:
    """Return a part of a tensor that is (1,) where the output is 0-d, or the other way, or has as many dimensions."""
    own = part if len(part) == len(info.shape) else tuple((0, size) for size in info.shape)
    return read_part(source, info, own).reshape(box_shape(part))


def read_number(source: Checkpoint, key: str) -> float | None:
    """Return the one number that a tensor holds, None where it is not finite."""
    info = source[key]
    values = read_part(source, info, tuple((0, size) for size in info.shape))
    number = float(cast(values, info.dtype, "float64")[0].reshape(-1)[0])
    return number if math.isfinite(number) else None


def _read_stored(file: File, info: TensorInfo, part: Box) -> Array:
    dtype = raw_dtype(info.dtype)
    shape = box_shape(part)
    assert info.storage is not None
    start = info.storage.offset + info.offset
    if info.stride is None and shape == info.shape:  # all of it, as most are read
        return _resolved(_run(file, start, shape, dtype), info)
    stride = info.stride or contiguous_stride(info.shape)
    start += sum(begin * step for (begin, _), step in zip(part, stride, strict=True)) * dtype.itemsize
    array = _gather(file, start, shape, stride, dtype)
    return _resolved(array, info)


def _gather(file: File, start: int, shape: Sequence[int], stride: Sequence[int], dtype: Any) -> Array:
    """Read a strided region: in one go where it is dense, else piece by piece along its widest stride."""
    span, needed = reach(shape, stride) * dtype.itemsize, math.prod(shape) * dtype.itemsize
    if span == needed and contiguous_stride(shape) == tuple(stride):
        return _run(file, start, shape, dtype)
    if span <= max(SMALL, SPARSE * needed) or max(shape, default=1) == 1:
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
    """Read elements that lie one behind the other."""
    whole = np.empty(shape, dtype)
    file.readinto(start, whole.reshape(-1).view("u1").data)
    return whole


def _resolved(array: Array, info: TensorInfo) -> Array:
    """Swap bytes and apply the conjugate and negative bits that torch saves beside the values."""
    if info.storage is not None and info.storage.big_endian and info.itemsize > 1:
        array = _swapped(array, info)
    if info.conj:
        array = array ^ np.uint32(0x8000_0000) if info.dtype == "complex32" else np.conj(array)
    if info.neg:
        array = _negated(array, info.dtype)
    return array


def _negated(array: Array, dtype: str) -> Array:
    """Negate values, by their sign bits where numpy lacks the type; 8-bit floats may have neither -0 nor -NaN."""
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
    half = array.reshape(-1).view(f"<u{info.itemsize // 2}").byteswap()  # a scalar has no other view
    return half.view(array.dtype).reshape(array.shape)
