"""Decomposes the changes of LoHa, LoKr and stacked experts: their best products of low rank, their singular values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np

from ...errors import PlanError
from ...tensors.ops.regions import Array
from .composed import HADAMARD, SIDES, composed_shape
from .decomposition import Decomposition, elements_of_product, product_svd, singular_values, truncated

__all__ = [
    "composed_values",
    "decompose_composed",
    "decompose_stack",
    "elements_of_composed",
    "elements_of_stack",
    "stack_pairs",
    "stack_values",
]

Svd = tuple[Array, Array, Array]
"""Left singular vectors (columns), all singular values, and right singular vectors (rows)."""


def decompose_composed(kind: str, matrices: Sequence[Array], rank: int) -> Decomposition:
    """Return two factors of rank ``rank`` whose product is nearest to the change of a LoHa or LoKr.

    ``kind`` is one of ``SIDES``. Raises PlanError for values that are not finite.
    """
    if kind == HADAMARD:
        left, values, right = _hadamard_svd(matrices)
        return truncated(left[:, :rank], values, right[:rank])
    (left, _, right), (left2, _, right2) = pair = _svds(kind, matrices)
    values, order = _products(pair)
    first, second = np.divmod(order[:rank], len(pair[1][1]))
    columns = (left[:, None, first] * left2[None, :, second]).reshape(-1, rank)
    rows = (right[first, :, None] * right2[second, None, :]).reshape(rank, -1)
    return truncated(columns, values, rows)


def composed_values(kind: str, matrices: Sequence[Array]) -> Array:
    """Return the singular values of the change of a LoHa or LoKr, the largest first."""
    if kind == HADAMARD:
        return _hadamard_svd(matrices)[1]
    return _products(_svds(kind, matrices))[0]


def elements_of_composed(kind: str, shapes: Sequence[Sequence[int]], rank: int) -> int:
    """Return the largest number of float64 values in memory for factors of rank ``rank``, given the tensors' shapes."""
    found = composed_shape(kind, shapes)
    assert found is not None  # ensured by check_step
    given = sum(map(prod, shapes))
    if kind == HADAMARD:
        return given + _elements_of_svd(found.rows, found.columns, shapes[0][1] * shapes[2][1])
    sides = shapes[: SIDES[kind][0]], shapes[SIDES[kind][0] :]
    small = sum(_elements_of_svd(side[0][0], side[-1][1], side[-1][0] if len(side) == 2 else None) for side in sides)
    return given + small + 4 * found.rank + 4 * rank * (found.rows + found.columns)


def _elements_of_svd(rows: int, columns: int, rank: int | None) -> int:
    """Return the largest number of float64 values in memory for the decomposition of a matrix.

    The matrix is a product of two factors of rank ``rank``, which is decomposed without computing the matrix. If
    ``rank`` is None, or at least a side of the matrix, the matrix itself is decomposed.
    """
    small = min(rows, columns)
    if rank is not None and rank < small:
        return elements_of_product(rows, columns, rank)
    return 3 * rows * columns + small * (rows + columns) + 6 * small * small


def _hadamard_svd(matrices: Sequence[Array]) -> Svd:
    """Return the singular value decomposition of (W1a W1b) * (W2a W2b), multiplied element by element.

    The change is the product of two factors. Each row of the first factor has the products of all elements of this row
    of W1a with all elements of this row of W2a, so its rank is the product of the two ranks. If this rank is at least a
    side of the change, the change itself is computed instead, since it is smaller.
    """
    a, b, c, d = matrices
    columns = a.shape[1] * c.shape[1]
    if columns >= min(len(a), b.shape[1]):
        return _svd([(a @ b) * (c @ d)])
    left = (a[:, :, None] * c[:, None, :]).reshape(len(a), columns)
    return _svd([left, (b[:, None, :] * d[None, :, :]).reshape(columns, b.shape[1])])


def _svds(kind: str, matrices: Sequence[Array]) -> tuple[Svd, Svd]:
    at = SIDES[kind][0]
    return _svd(matrices[:at]), _svd(matrices[at:])


def _svd(matrices: Sequence[Array]) -> Svd:
    """Return the singular value decomposition of a matrix, or of a product of two matrices.

    Raises PlanError for values that are not finite.
    """
    if len(matrices) == 2 and matrices[0].shape[1] < min(len(matrices[0]), matrices[1].shape[1]):
        first, values, outer, inner = product_svd(*matrices)
        return first @ outer, values, inner
    whole = matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]
    if not np.isfinite(whole).all():
        raise PlanError(
            "the factors have values that are not finite.",
            hint="Leave the module out first, with ckpt filter --exclude.",
        )
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    return left, values, right


def _products(pair: tuple[Svd, Svd]) -> tuple[Array, Array]:
    """Return the singular values of the Kronecker product of two matrices, the largest first, and their indices.

    The values are the products of all pairs of singular values of the two matrices. If the second matrix has n singular
    values, the index i * n + j stands for value i of the first matrix times value j of the second. The singular vectors
    are the Kronecker products of the singular vectors of the two matrices.
    """
    values = np.outer(pair[0][1], pair[1][1]).reshape(-1)
    order = np.argsort(-values, kind="stable")
    return values[order], order


def stack_pairs(a: Array, b: Array, experts: int) -> list[tuple[Array, Array]]:
    """Return (left, right) for each of ``experts`` stacked experts: the factors of its change (out, rank), (rank, in).

    ``a`` (experts * rank, in) and ``b`` (out, rank * experts) hold the factors of all experts, as in PEFT.
    """
    lefts = b.reshape(len(b), -1, experts).transpose(2, 0, 1)
    return list(zip(lefts, a.reshape(experts, -1, a.shape[1]), strict=True))


def decompose_stack(a: Array, b: Array, experts: int, rank: int) -> Decomposition:
    """Return the factors of stacked experts with the rank ``rank``, laid out as ``b`` (left) and ``a`` (right) are.

    The product of each expert is the nearest to its present product. Errors are those of all experts together. Raises
    PlanError for values that are not finite.
    """
    found, square, lost = [], 0.0, 0.0
    for first, second in stack_pairs(a, b, experts):
        basis, values, outer, inner = product_svd(first, second)
        found.append(truncated(basis @ outer[:, :rank], values, inner[:rank]))
        square += float(values @ values)
        lost += float(values[rank:] @ values[rank:])
    left = np.stack([one.left for one in found], axis=2).reshape(len(b), -1)
    error, unsure = sqrt(lost / square) if square else 0.0, sqrt(sum(one.unsure**2 for one in found))
    return Decomposition(left, np.vstack([one.right for one in found]), error, unsure)


def stack_values(a: Array, b: Array, experts: int) -> list[Array]:
    """Return the singular values of the change of each of ``experts`` stacked experts, the largest first."""
    return [singular_values(left, right) for left, right in stack_pairs(a, b, experts)]


def elements_of_stack(out: int, into: int, rank: int, experts: int) -> int:
    """Return the largest number of float64 values in memory for the decomposition of stacked experts of this rank."""
    return 3 * experts * rank * (out + into) + elements_of_product(out, into, rank)
