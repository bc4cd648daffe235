"""The best product of a rank for a matrix that is read row by row, on one thread of BLAS.

Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1. What is held in memory is a
block of rows, and as many columns as the rank and some more.
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
from ...tensors.ops.boxes import Array

__all__ = ["PASSES", "Decomposition", "Rows", "decompose", "elements_held", "multiplied"]

# Keeps the BLAS of numpy to the thread that calls it, where several threads call it at once. No files.
#
# Two threads that multiply while OpenBLAS spreads each product over two of its own wait for each other: 64 by 256 by
# 2048 took 20 ms then, and 0.8 without.

ALONE = 1 << 18
"""Multiplications that OpenBLAS does in one thread, whatever it may use: ``interface/gemm.c``, SMP_THRESHOLD_MIN."""

_NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")
"""The names of a function of OpenBLAS in numpy's wheels since 2.0, in those before, and in Debian."""


def multiplied(left: Array, right: Array) -> Array:
    """Return the product of two matrices, computed by this thread alone."""
    with _LIMITS.alone() as alone:
        return left @ right if alone else _in_parts(left, right)


def _in_parts(left: Array, right: Array) -> Array:
    """Return the product in parts that are too small to be spread over threads."""
    total = np.empty((len(left), right.shape[1]), left.dtype)
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


class _Limits:
    """The number of threads of a library, one while somebody multiplies, else what it was."""

    def __init__(self, get: Callable[[], int] | None, put: Callable[[int], object]) -> None:
        self._get, self._put = get, put
        self._lock, self._users, self._former = Lock(), 0, 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Tell whether the library is kept to one thread."""
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


def _found() -> _Limits:
    """Return what keeps the OpenBLAS that numpy is linked with; of another BLAS, or none, what keeps nothing."""
    try:
        core = ctypes.CDLL(_umath_linalg.__file__)  # a symbol is looked for in what it is linked with, too
    except (AttributeError, OSError):
        return _Limits(None, lambda number: None)
    for name in _NAMES:
        get, put = (getattr(core, name.format(f"{verb}_num_threads"), None) for verb in ("get", "set"))
        if get is not None and put is not None:
            return _Limits(get, put)
    return _Limits(None, lambda number: None)


_LIMITS = _found()
"""Found when this is imported, once: whoever multiplies shares one lock."""


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
