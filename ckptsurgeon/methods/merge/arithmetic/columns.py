"""Products of columns: of the vectors along a tensor's first dimension, one for each place in the others."""

from __future__ import annotations

import math

import numpy as np

from ....tensors.ops.boxes import Array
from .._method import Slice, Tensors
from .pieces import PIECE, on_host, pieces

__all__ = ["PAIRS", "column_products", "columns_at"]

PAIRS = ((0, 0), (1, 1), (0, 1))
"""Which of two vectors are multiplied: each with itself, and both."""

SLICE, SUMS, MOST = 1 << 17, 8 * len(PAIRS), 16 << 20
"""About the elements of a slice, the bytes that are kept of each column for it, and how many of all may be kept."""


def column_products(tensors: Tensors) -> Array:
    """Return the products of ``PAIRS`` of the deltas, in float64: an array of (3, columns)."""
    columns = math.prod(tensors.shape[1:])
    if columns > PIECE or math.prod(tensors.shape) // SLICE * columns * SUMS > MOST:
        # Sums of all columns for every slice would be larger than the tensors, whose memory is counted.
        deltas = [on_host(delta).reshape(-1, columns) for delta in tensors.whole().deltas]
        return np.stack([np.einsum("ij,ij->j", deltas[i], deltas[j], dtype=np.float64) for i, j in PAIRS])

    def look(at: Slice) -> Array:
        total = np.zeros((len(PAIRS), columns))
        for piece in pieces(at):
            deltas = [on_host(delta).astype(np.float64) for delta in piece.deltas]
            where = columns_at(piece, columns)
            for row, (i, j) in enumerate(PAIRS):
                total[row] += np.bincount(where, deltas[i] * deltas[j], columns)
        return total

    return sum(tensors.map(look), np.zeros((len(PAIRS), columns)))


def columns_at(at: Slice, columns: int) -> Array:
    """Return the column of each element of a flat piece."""
    count = at.models[0].shape[0]
    where: Array = (at.offset % columns + np.arange(count)) % columns
    return where
