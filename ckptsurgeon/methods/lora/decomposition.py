"""The best product of a rank for a matrix that is read row by row: a randomised singular value decomposition. No files.

Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1. What is held in memory is a
block of rows, and as many columns as the rank and some more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ...errors import PlanError
from ...tensors.ops.boxes import Array

__all__ = ["PASSES", "Decomposition", "Rows", "decompose", "elements_held"]

MORE = 10
"""Directions beyond the rank that are looked at."""

POWERS = 2
"""Times that the matrix and its transpose are applied again: singular values that fall slowly are told apart so."""

ROUNDED = 1e-10
"""What double precision may be off in the sums of a decomposition, over the largest singular value: 1e-16 for each of
up to a million terms."""

PASSES = 3 + 2 * POWERS
"""Times that the rows are read: for their norm, for a basis, its powers and the singular values."""

Rows = Callable[[], Iterator[Array]]
"""Gives the rows of a matrix from the first on, in blocks, in double precision; each time anew."""


@dataclass(frozen=True)
class Decomposition:
    """``left`` (rows, rank) times ``right`` (rank, columns); ``error`` is what they lack, over the matrix, by norm.

    ``unsure`` is how far, by Frobenius norm, their product may be from that of another machine, whose LAPACK and BLAS
    round otherwise.
    """

    left: Array
    right: Array
    error: float
    unsure: float = 0.0


def elements_held(shape: tuple[int, int], rank: int) -> int:
    """Return how many numbers of double precision are held at most beside a block of rows: of a basis, in copies."""
    return 4 * min(rank + MORE, *shape) * sum(shape)


def decompose(rows: Rows, shape: tuple[int, int], rank: int, seed: int) -> Decomposition:
    """Return two factors that share the singular values of a matrix evenly; raises PlanError where it is not finite."""
    size = min(rank + MORE, *shape)
    start = np.random.Generator(np.random.Philox(seed)).standard_normal((shape[1], size))
    square = sum(float(np.vdot(block, block)) for block in rows())
    if not np.isfinite(square):
        raise PlanError("its difference from the base is not finite.", hint="Leave it out with --exclude.")
    basis = _orthonormal(_applied(rows, start))
    for _ in range(POWERS):
        basis = _orthonormal(_applied(rows, _orthonormal(_transposed(rows, basis, shape[1]))))
    inner, values, right = np.linalg.svd(_transposed(rows, basis, shape[1]).T, full_matrices=False)
    unsure = _unsure(values, rank)
    left, values, right = basis @ inner[:, :rank], values[:rank], right[:rank]
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # else LAPACK's mood
    roots = np.sqrt(values)
    error = sqrt(max(0.0, square - float(values @ values)) / square) if square else 0.0
    return Decomposition(left * (signs * roots), (signs * roots)[:, None] * right, error, unsure)


def _unsure(values: Array, rank: int) -> float:
    """Return how far a product of the largest singular values may be from one that was rounded otherwise.

    Singular vectors turn by what is rounded over the gap to the next value (Wedin 1972), from those that are kept to
    those that are not: where values are as good as equal, any of them are the best. No turn changes more than the
    values at the gap, of which there are at most ``rank``.
    """
    if not values[0]:
        return 0.0
    last, after = float(values[rank - 1]), float(values[rank]) if rank < len(values) else 0.0
    turned = min(1.0, ROUNDED * float(values[0]) / (last - after)) if last > after else 1.0
    return ROUNDED * float(values[0]) + 2 * sqrt(rank) * last * turned


def _orthonormal(matrix: Array) -> Array:
    basis: Array = np.linalg.qr(matrix)[0]
    return basis


def _applied(rows: Rows, columns: Array) -> Array:
    """Return the matrix times some columns."""
    return np.vstack([block @ columns for block in rows()])


def _transposed(rows: Rows, columns: Array, size: int) -> Array:
    """Return the transposed matrix, of ``size`` rows, times some columns."""
    total, begin = np.zeros((size, columns.shape[1])), 0
    for block in rows():
        total += block.T @ columns[begin : begin + len(block)]
        begin += len(block)
    return total
