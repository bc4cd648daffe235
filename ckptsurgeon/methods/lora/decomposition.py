"""Finds the best low-rank product for a matrix that is read row by row, with BLAS on one thread.

The method is randomised: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1.
Only a block of rows, and matrices with a few more columns than the rank, are in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import sqrt
from threading import Lock

import numpy as np
from numpy.linalg import _umath_linalg

from ...errors import PlanError
from ...tensors.ops.regions import Array

__all__ = [
    "PASSES",
    "Decomposition",
    "Rows",
    "alone",
    "decompose",
    "decompose_product",
    "elements_held",
    "elements_of_product",
    "multiplied",
    "product_svd",
    "singular_values",
    "truncated",
]

# Limits numpy's BLAS to the calling thread if several threads call it at once.
#
# If OpenBLAS splits products over threads of its own, two of our threads that multiply at once wait for each other: a
# product of 64 by 256 by 2048 took 20 ms, and 0.8 ms if OpenBLAS did not split it.

ALONE = 1 << 18
"""The most multiplications of a product that OpenBLAS computes in one thread (SMP_THRESHOLD_MIN, gemm.c)."""

_NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")
"""The names of OpenBLAS's functions: in numpy's wheels since 2.0, in older wheels, in Debian."""


def multiplied(left: Array, right: Array) -> Array:
    """Return the product of two matrices, computed by BLAS in this thread only."""
    with _LIMITS.alone() as alone:
        return left @ right if alone else _in_parts(left, right)


def _in_parts(left: Array, right: Array) -> Array:
    """Return the product of two matrices, computed in parts so small that BLAS uses one thread for each part."""
    total = np.empty((len(left), right.shape[1]), left.dtype)
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


_Functions = tuple[Callable[[], int], Callable[[int], object]]
"""A function that returns how many threads a BLAS library uses, and a function that sets this number."""


@dataclass
class _BlasThreads:
    """Limits the number of threads of a BLAS library to one during a product, and restores it afterwards.

    ``find`` returns the functions of the library, or None if it has none. It is called at the first product.
    """

    find: Callable[[], _Functions | None]
    _lock: Lock = field(default_factory=Lock)
    _users: int = 0
    _former: int = 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Limit the library to one thread during the block; yields False if it cannot be limited, else True."""
        functions = self.find()
        if functions is None:
            yield False
            return
        get, put = functions
        with self._lock:
            if not self._users:
                self._former = get()
                put(1)
            self._users += 1
        try:
            yield True
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    put(self._former)


@cache
def _openblas() -> _Functions | None:
    """Return the functions of numpy's OpenBLAS that get and set its number of threads; None for another BLAS."""
    try:
        core = ctypes.CDLL(_umath_linalg.__file__)  # a symbol is also found in the libraries it is linked with
    except (AttributeError, OSError):
        return None
    for name in _NAMES:
        get, put = (getattr(core, name.format(f"{verb}_num_threads"), None) for verb in ("get", "set"))
        if get is not None and put is not None:
            return get, put
    return None


_LIMITS = _BlasThreads(_openblas)
"""The only limiter in this process, since all products must share its lock."""


def alone() -> AbstractContextManager[bool]:
    """Limit numpy's BLAS to the calling thread during a block; yields False if this BLAS cannot be limited, else True.

    BLAS adds in another order if it splits sums over threads. So without this limit, results depend on the number of
    threads.
    """
    return _LIMITS.alone()


MORE = 10
"""The oversampling: how many directions are computed in addition to the rank."""

POWERS = 2
"""The number of power iterations, which separate singular values that decrease slowly."""

ROUNDED = 1e-10
"""The largest rounding error of a decomposition in double precision, relative to the largest singular value.

It is 1e-16 for each of up to a million terms of a sum."""

PASSES = 3 + 2 * POWERS
"""How often all rows are read: for the norm, a basis, each power iteration (twice) and the singular values."""

Rows = Callable[[], Iterator[Array]]
"""A function that yields all rows of a matrix in blocks, in double precision; every call begins with the first row."""


@dataclass(frozen=True)
class Decomposition:
    """Two factors whose product is near a matrix: ``left`` (rows, rank) and ``right`` (rank, columns).

    ``error`` is |matrix - product| / |matrix|. ``unsure`` is how much, as a Frobenius norm, the product may differ if
    it is computed on another machine, where LAPACK and BLAS round differently.
    """

    left: Array
    right: Array
    error: float
    unsure: float = 0.0


def elements_held(shape: tuple[int, int], rank: int) -> int:
    """Return the largest number of float64 values that ``decompose`` has in memory, in addition to a block of rows."""
    return 4 * min(rank + MORE, *shape) * sum(shape)


def decompose(rows: Rows, shape: tuple[int, int], rank: int, seed: int) -> Decomposition:
    """Return two factors of rank ``rank`` whose product approximates the matrix that ``rows`` yields.

    ``shape`` is the shape of the matrix. Each factor is multiplied by the square roots of the singular values. ``seed``
    is for the random start of the method. Raises PlanError if the matrix has values that are not finite.
    """
    size = min(rank + MORE, *shape)
    start = np.random.Generator(np.random.Philox(seed)).standard_normal((shape[1], size))
    square = sum(float(np.vdot(block, block)) for block in rows())
    if not np.isfinite(square):
        raise PlanError(
            "the difference between the weights of the tuned model and the base has values that are not finite.",
            hint="Leave the layer out, with --exclude.",
        )
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


def elements_of_product(rows: int, columns: int, rank: int) -> int:
    """Return the largest number of float64 values that ``decompose_product`` has in memory for this rank."""
    return 5 * rank * (rows + columns) + 5 * min(rank, rows) * min(rank, columns)


def decompose_product(left: Array, right: Array, rank: int) -> Decomposition:
    """Return two factors of rank ``rank`` whose product is nearest to ``left`` (rows, r) times ``right`` (r, columns).

    The product itself is never in memory: both factors are replaced by an orthonormal basis and a triangular matrix
    (QR), and only the product of the triangular matrices, which has at most r rows and columns, is decomposed. Each new
    factor is multiplied by the square roots of the singular values. Raises PlanError for values that are not finite.
    """
    first, values, outer, inner = product_svd(left, right)
    return truncated(first @ outer[:, :rank], values, inner[:rank])


def truncated(left: Array, values: Array, right: Array) -> Decomposition:
    """Return the factors that the first singular vectors of a matrix make: ``left`` (columns) and ``right`` (rows).

    ``values`` are all singular values of the matrix, the largest first.
    """
    rank = len(right)
    unsure = _unsure(values, rank)
    error = sqrt(float(values[rank:] @ values[rank:]) / float(values @ values)) if values[0] else 0.0
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])  # LAPACK's signs are arbitrary
    roots = np.sqrt(values[:rank])
    return Decomposition(left * (signs * roots), (signs * roots)[:, None] * right, error, unsure)


def singular_values(left: Array, right: Array) -> Array:
    """Return the singular values of ``left`` times ``right``, the largest first.

    Raises PlanError as ``decompose_product``.
    """
    return product_svd(left, right)[1]


def product_svd(left: Array, right: Array) -> tuple[Array, Array, Array, Array]:
    """Return the singular value decomposition of ``left`` times ``right``, in four parts.

    They are a basis of the columns of ``left``, the singular values, the left singular vectors as coordinates in this
    basis, and the right singular vectors as rows. Raises PlanError for values that are not finite.
    """
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise PlanError(
            "the factors have values that are not finite.",
            hint="Leave the module out first, with ckpt filter --exclude.",
        )
    (first, upper), (second, lower) = np.linalg.qr(left), np.linalg.qr(right.T)
    outer, values, inner = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return first, values, outer, inner @ second.T


def _unsure(values: Array, rank: int) -> float:
    """Return how much rounding may change the best product of rank ``rank``, as a Frobenius norm.

    ``values`` are all singular values. Rounding turns the ``rank`` kept singular vectors towards the other vectors. The
    angle is at most the rounding error divided by the gap between the last kept singular value and the next one (Wedin
    1972). If these two values are nearly equal, the angle may be large, but either vector is equally good. The result
    is an upper limit: it assumes that all ``rank`` kept vectors turn by this angle.
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
    """Return the product M C of two matrices: ``rows`` yields the rows of M, and ``columns`` is C."""
    return np.vstack([block @ columns for block in rows()])


def _transposed(rows: Rows, columns: Array, size: int) -> Array:
    """Return the product M^T C: ``rows`` yields the rows of M, which has ``size`` columns, and ``columns`` is C."""
    total, begin = np.zeros((size, columns.shape[1])), 0
    for block in rows():
        total += block.T @ columns[begin : begin + len(block)]
        begin += len(block)
    return total
