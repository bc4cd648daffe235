"""The best low-rank product for a matrix that is read row by row, with BLAS on one thread.

Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1. Memory holds a block of
rows, and a few more columns than the rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from threading import Lock

import numpy as np
from numpy.linalg import _umath_linalg

from ...errors import PlanError
from ...tensors.ops.regions import Array

__all__ = ["PASSES", "Decomposition", "Rows", "decompose", "elements_held", "multiplied"]

# Limits numpy's BLAS to the calling thread if several threads call it at once.
#
# Two threads that multiply while OpenBLAS splits each product over two of its own wait for each other: 64 by 256 by
# 2048 took 20 ms then, and 0.8 without.

ALONE = 1 << 18
"""Multiplications that OpenBLAS always does in one thread: ``interface/gemm.c``, SMP_THRESHOLD_MIN."""

_NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")
"""The names of a function of OpenBLAS in numpy's wheels since 2.0, in those before, and in Debian."""


def multiplied(left: Array, right: Array) -> Array:
    """Return the product of two matrices, computed by this thread alone."""
    with _LIMITS.alone() as alone:
        return left @ right if alone else _in_parts(left, right)


def _in_parts(left: Array, right: Array) -> Array:
    """Return the product, computed in parts that are too small for several threads."""
    total = np.empty((len(left), right.shape[1]), left.dtype)
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


class _BlasThreads:
    """The number of threads of a library: one during a product, else the old number."""

    def __init__(self, get: Callable[[], int] | None, put: Callable[[int], object]) -> None:
        self._get, self._put = get, put
        self._lock, self._users, self._former = Lock(), 0, 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Yield whether the library is limited to one thread."""
        if self._get is None:
            yield False
            return
        with self._lock:
            if not self._users:
                self._former = self._get()
                self._put(1)
            self._users += 1
        try:
            yield True
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._put(self._former)


def _blas_threads() -> _BlasThreads:
    """Return the limits of the OpenBLAS that numpy is linked with; for another BLAS, limits that do nothing."""
    try:
        core = ctypes.CDLL(_umath_linalg.__file__)  # a symbol is also found in the libraries it is linked with
    except (AttributeError, OSError):
        return _BlasThreads(None, lambda number: None)
    for name in _NAMES:
        get, put = (getattr(core, name.format(f"{verb}_num_threads"), None) for verb in ("get", "set"))
        if get is not None and put is not None:
            return _BlasThreads(get, put)
    return _BlasThreads(None, lambda number: None)


_LIMITS = _blas_threads()
"""Made once, on import: all products share one lock."""


MORE = 10
"""Directions computed in addition to the rank."""

POWERS = 2
"""Times that the matrix and its transpose are applied again, to separate singular values that fall slowly."""

ROUNDED = 1e-10
"""What double precision may be off in the sums of a decomposition, over the largest singular value: 1e-16 for each of
up to a million terms."""

PASSES = 3 + 2 * POWERS
"""Times that the rows are read: for the norm, a basis, its powers and the singular values."""

Rows = Callable[[], Iterator[Array]]
"""Yields the rows of a matrix from the start, in blocks, in double precision; every call starts again."""


@dataclass(frozen=True)
class Decomposition:
    """``left`` (rows, rank) times ``right`` (rank, columns); ``error`` is the norm of the rest over that of the matrix.

    ``unsure`` is how far, by Frobenius norm, their product may be from that of another machine, whose LAPACK and BLAS
    round differently.
    """

    left: Array
    right: Array
    error: float
    unsure: float = 0.0


def elements_held(shape: tuple[int, int], rank: int) -> int:
    """Return the most numbers of double precision in memory in addition to a block of rows: copies of a basis."""
    return 4 * min(rank + MORE, *shape) * sum(shape)


def decompose(rows: Rows, shape: tuple[int, int], rank: int, seed: int) -> Decomposition:
    """Return two factors that share the singular values of a matrix evenly; raises PlanError if it is not finite."""
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
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # LAPACK's signs are arbitrary
    roots = np.sqrt(values)
    error = sqrt(max(0.0, square - float(values @ values)) / square) if square else 0.0
    return Decomposition(left * (signs * roots), (signs * roots)[:, None] * right, error, unsure)


def _unsure(values: Array, rank: int) -> float:
    """Return how far a product of the largest singular values may be from one that was rounded differently.

    Singular vectors turn by the rounding error over the gap to the next value (Wedin 1972), from those that are kept to
    those that are not: if values are nearly equal, any of them are the best. No turn changes more than the
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
