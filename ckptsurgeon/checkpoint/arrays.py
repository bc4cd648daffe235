"""The header of an array of numpy's that is in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ..formats.pickle.values import Name, Opaque
from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage, TensorInfo
from ..tensors.strides import contiguous_stride, reach
from .buffers import ArrayBytes

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

__all__ = ["Place", "array_info", "is_array"]

Place: TypeAlias = tuple[str, int, int, bool]
"""Where bytes are: device, address, number, and whether the most significant byte of an element comes first."""

StorageAt: TypeAlias = Callable[..., Storage]
"""Gives the storage for (place, piece, big_endian=…)."""


def is_array(value: object) -> bool:
    """Whether something is an array of numpy's, or a number of its kind; numpy is not imported to know."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def array_info(value: Any, storage_at: StorageAt) -> Any:
    """Return the header of an array of numbers; a single number as Python's, and what else there is as opaque.

    An array that runs backwards through memory is copied.
    """
    import numpy as np

    if isinstance(value, np.generic):
        plain = value.item()
        return plain if isinstance(plain, (bool, int, float, complex, str, bytes)) else _no_tensor(value)
    dtype = value.dtype.name
    known = dtype in DTYPES and DTYPES[dtype].bits == 8 * value.dtype.itemsize and value.dtype.names is None
    if not known or isinstance(value, np.ma.MaskedArray):
        return _no_tensor(value)
    return _strided(np.asarray(value), dtype, storage_at)


def _no_tensor(value: Any) -> Opaque:
    return Opaque(Name("numpy", f"{type(value).__name__} of {value.dtype}"[:60]))


def _strided(array: Array, dtype: str, storage_at: StorageAt) -> TensorInfo:
    import numpy as np

    big = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    stride = _stride(array)
    if stride is None:
        array = np.ascontiguousarray(array)
        stride = contiguous_stride(array.shape)
    extent = reach(array.shape, stride)
    info_stride = None if array.flags.c_contiguous else stride
    if not extent:
        return TensorInfo(dtype, array.shape, storage_at(("", 0, 0, big), None, big_endian=big))
    flat = np.lib.stride_tricks.as_strided(array, (extent,), (array.itemsize,))
    place = "cpu", int(array.__array_interface__["data"][0]), extent * array.itemsize, big
    return TensorInfo(
        dtype, array.shape, storage_at(place, ArrayBytes(flat.view("u1")), big_endian=big), 0, info_stride
    )


def _stride(array: Array) -> tuple[int, ...] | None:
    """Return strides in elements, None where one is negative or no multiple of an element."""
    steps = [divmod(step, array.itemsize) for step in array.strides]
    usual = all(size == 1 or (step >= 0 and not rest) for size, (step, rest) in zip(array.shape, steps, strict=True))
    return tuple(max(step, 0) for step, _ in steps) if usual else None
