"""Finds the equal rows of a matrix."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.info import TensorInfo
from ....tensors.ops.regions import Array

__all__ = ["alike_rows"]


def alike_rows(checkpoint: Checkpoint, info: TensorInfo, totals: Array, squares: Array) -> Array:
    """Return a mask of the rows of a matrix that equal another row, bit for bit; rows of zeros are not included.

    ``totals`` and ``squares`` are the sums of the values and of their squares in each row. Only rows that have the same
    two sums as another row are read. Equal sums prove nothing: all rows of an identity matrix have equal sums.
    """
    found = np.zeros(len(squares), np.bool_)
    by_bytes: dict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(_have_equal_sums(squares, totals) & (squares != 0)).tolist():
        by_bytes[_digest(checkpoint, info, row)].append(row)
    for rows in by_bytes.values():
        found[rows] = len(rows) > 1
    return found


def _have_equal_sums(squares: Array, totals: Array) -> Array:
    """Return a mask of the rows whose sum and whose sum of squares are equal to those of another row."""
    # numpy.unique would import numpy.ma, which takes long
    order = np.lexsort((totals, squares))
    alike = (np.diff(squares[order]) == 0) & (np.diff(totals[order]) == 0)
    found = np.zeros(len(order), np.bool_)
    found[order[1:]] |= alike
    found[order[:-1]] |= alike
    return found


def _digest(checkpoint: Checkpoint, info: TensorInfo, row: int) -> bytes:
    """Return a digest of the bytes of a row; the matrix must be stored as plain bytes."""
    assert info.storage is not None
    size = info.shape[1] * info.itemsize
    data = bytearray(size)
    checkpoint.file(info).readinto(info.storage.offset + info.offset + row * size, memoryview(data))
    return hashlib.blake2b(data, digest_size=16).digest()
