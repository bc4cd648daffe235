"""Decomposes the changes of LoHa and LoKr: computes their best products of low rank, and their singular values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ...errors import PlanError
from ...tensors.ops.regions import Array
from .composed import HADAMARD, SIDES, composed_shape
from .decomposition import (
    Decomposition,
    decompose_product,
    elements_of_product,
    product_svd,
    singular_values,
    truncated,
)

__all__ = ["composed_values", "decompose_composed", "elements_of_composed"]

Svd = tuple[Array, Array, Array]
"""Left singular vectors (columns), all singular values, and right singular vectors (rows)."""


def decompose_composed(kind: str, matrices: Sequence[Array], rank: int) -> Decomposition:
    """Return two factors of rank ``rank`` whose product is nearest to the change of a LoHa or LoKr.

    ``kind`` is one of ``SIDES``. Raises PlanError for values that are not finite.
    """
    if kind == HADAMARD:
        return decompose_product(*hadamard_factors(matrices), rank)
    (left, _, right), (left2, _, right2) = pair = _svds(kind, matrices)
    values, order = _products(pair)
    first, second = np.divmod(order[:rank], len(pair[1][1]))
    columns = (left[:, None, first] * left2[None, :, second]).reshape(-1, rank)
    rows = (right[first, :, None] * right2[second, None, :]).reshape(rank, -1)
    return truncated(columns, values, rows)


def composed_values(kind: str, matrices: Sequence[Array]) -> Array:
    """Return the singular values of the change of a LoHa or LoKr, the largest first."""
    if kind == HADAMARD:
        return singular_values(*hadamard_factors(matrices))
    return _products(_svds(kind, matrices))[0]


def elements_of_composed(kind: str, shapes: Sequence[Sequence[int]], rank: int) -> int:
    """Return the largest number of float64 values in memory for factors of rank ``rank``, given the tensors' shapes."""
    found = composed_shape(kind, shapes)
    assert found is not None  # ensured by check_step
    given = sum(map(prod, shapes))
    if kind == HADAMARD:
        return given + elements_of_product(found.rows, found.columns, min(found.rank, found.rows, found.columns))
    sides = shapes[: SIDES[kind][0]], shapes[SIDES[kind][0] :]
    small = sum(elements_of_product(side[0][0], side[-1][1], min(side[0])) for side in sides)
    return given + small + 4 * found.rank + 4 * rank * (found.rows + found.columns)


def hadamard_factors(matrices: Sequence[Array]) -> tuple[Array, Array]:
    """Return two factors whose product is (W1a W1b) * (W2a W2b), element by element.

    Row by row, the first factor has all products of an element of W1a and one of W2a, so that its rank is the product
    of the two ranks. If this is no less than a side of the change, the change itself is computed, since it is smaller.
    """
    a, b, c, d = matrices
    columns = a.shape[1] * c.shape[1]
    if columns < min(len(a), b.shape[1]):
        left = (a[:, :, None] * c[:, None, :]).reshape(len(a), columns)
        return left, (b[:, None, :] * d[None, :, :]).reshape(columns, b.shape[1])
    whole = (a @ b) * (c @ d)
    rows, columns = whole.shape
    return (np.eye(rows), whole) if rows < columns else (whole, np.eye(columns))


def _svds(kind: str, matrices: Sequence[Array]) -> tuple[Svd, Svd]:
    at = SIDES[kind][0]
    return _svd(matrices[:at]), _svd(matrices[at:])


def _svd(matrices: Sequence[Array]) -> Svd:
    """Return the singular value decomposition of a matrix, or of a product of two matrices."""
    if len(matrices) == 2:
        first, values, outer, inner = product_svd(*matrices)
        return first @ outer, values, inner
    if not np.isfinite(matrices[0]).all():
        raise PlanError("the factors have values that are not finite.", hint="Leave the module out of the adapter.")
    left, values, right = np.linalg.svd(matrices[0], full_matrices=False)
    return left, values, right


def _products(pair: tuple[Svd, Svd]) -> tuple[Array, Array]:
    """Return the products of the singular values of two matrices, the largest first, and their order.

    These are the singular values of the Kronecker product, and its singular vectors are the Kronecker products of the
    singular vectors.
    """
    values = np.outer(pair[0][1], pair[1][1]).reshape(-1)
    order = np.argsort(-values, kind="stable")
    return values[order], order
