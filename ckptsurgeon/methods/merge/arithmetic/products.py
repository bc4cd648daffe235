"""Dot products and lengths of vectors."""

from __future__ import annotations

import math

import numpy as np

from ....tensors.ops.regions import Array
from .._slices import PIECE, Slice, Tensors, on_host, pieces

__all__ = [
    "PAIRS",
    "angle",
    "column_products",
    "columns_at",
    "gram",
    "lengths",
    "sums_are_large",
]

# Products of columns: the vectors along a tensor's first dimension, one for each position in the other dimensions.

PAIRS = ((0, 0), (1, 1), (0, 1))
"""The pairs of two vectors that are multiplied: each vector with itself, and both with each other."""

SLICE, SUMS, MOST = 1 << 17, 8 * len(PAIRS), 16 << 20
"""The approximate number of elements of a slice; the bytes of the sums for a column; the most bytes of all sums."""


def sums_are_large(shape: tuple[int, ...]) -> bool:
    """Return whether ``column_products`` reads tensors of this shape as a whole, as sums of slices take more memory."""
    columns = math.prod(shape[1:])
    return columns > PIECE or math.prod(shape) // SLICE * columns * SUMS > MOST


def column_products(tensors: Tensors) -> Array:
    """Return three dot products for each column of the differences of two models to the base, as (3, columns) float64.

    Row 0 has the products of the first difference with itself, row 1 of the second with itself, and row 2 of the first
    with the second.
    """
    columns = math.prod(tensors.shape[1:])
    if sums_are_large(tensors.shape):
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
    """Return the index of the column of each element in a flat piece of a tensor with ``columns`` columns."""
    count = at.models[0].shape[0]
    where: Array = (at.offset % columns + np.arange(count)) % columns
    return where


# Methods whose result is a sum of the inputs, with factors that depend only on their lengths and angles.
#
# Lengths and angles follow from the Gram matrix, the dot products of each input with each. It takes one pass over the
# values, in float64. The rest is arithmetic on a matrix of a few rows.


def gram(tensors: Tensors) -> Array:
    """Return the Gram matrix of the models' differences to the base (or of the models, without a base), in float64.

    Row i, column j has the dot product of the differences i and j.
    """
    size = tensors.count

    def products(at: Slice) -> Array:
        total = np.zeros((size, size))
        for piece in pieces(at):
            wide = at.wide(piece.deltas)
            for i, left in enumerate(wide):
                for j, right in enumerate(wide[: i + 1]):
                    total[i, j] += float(left @ right)
        return total

    lower = sum(tensors.map(products), np.zeros((size, size)))
    both: Array = lower + np.tril(lower, -1).T
    return both


def lengths(products: Array) -> Array:
    """Return the Euclidean norms of the vectors of a Gram matrix."""
    norms: Array = np.sqrt(np.clip(np.diag(products), 0, None))
    return norms


def angle(cosine: float) -> float:
    """Return the angle in radians with this cosine, which may be slightly beyond 1 or -1 by rounding."""
    return float(np.arccos(np.clip(cosine, -1, 1)))
