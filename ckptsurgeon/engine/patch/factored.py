"""Decides which matrices' changes a patch stores as low-rank factors, and reads these changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ...tensors.info import TensorInfo
from ...tensors.ops.casts import raw_dtype, widened
from ...tensors.ops.regions import Array
from .blocks import FLOATS
from .low_rank import fits_in_memory

__all__ = ["changes", "matrix_shape", "why_exact"]

ROWS = 1 << 20
"""About how many elements of a change are in memory while its factors are computed."""
Read = Callable[[int, memoryview], object]
"""A function that fills a view with the bytes of a tensor from an offset on."""


def matrix_shape(info: TensorInfo) -> tuple[int, int]:
    """Return the rows and columns of a tensor; the kernel dimensions of a convolution are columns, too."""
    return info.shape[0], math.prod(info.shape[1:])


def why_exact(old: TensorInfo | None, new: TensorInfo, rank: int) -> str:
    """Return why a patch must store a matrix exactly; "" if it can store low-rank factors of the matrix's change.

    ``old`` is the tensor that the matrix is compared with, if there is one.
    """
    if new.dtype not in FLOATS:
        return f"the dtype is {new.dtype}"
    if old is None or old.shape != new.shape:
        return "the old checkpoint has no matrix of this key, dtype and shape"
    if rank >= min(matrix_shape(new)):
        return f"rank {rank} is not below both sides of the matrix"
    return (
        "" if fits_in_memory(matrix_shape(new), rank) else "computing the factors would take more than 1 GiB of memory"
    )


def changes(old: Read, new: Read, shape: tuple[int, int], dtype: str) -> Iterator[Array]:
    """Yield the new matrix minus the old one in float64, some rows at a time."""
    (rows, columns), itemsize = shape, raw_dtype(dtype).itemsize
    step = max(1, ROWS // columns)
    for row in range(0, rows, step):
        wide = []
        for read in (new, old):
            raw = np.empty(min(step, rows - row) * columns * itemsize, np.uint8)
            read(row * columns * itemsize, raw.data)
            wide.append(widened(raw.view(raw_dtype(dtype)), dtype).astype("<f8"))
        with np.errstate(all="ignore"):
            yield (wide[0] - wide[1]).reshape(-1, columns)
