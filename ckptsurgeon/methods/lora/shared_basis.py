"""KnOTS for low-rank adapters: merges products of factors in a basis that all share, without computing whole products.

The basis consists of the left singular vectors of all products, side by side (https://arxiv.org/abs/2410.19735). Each
column of a product is a combination of the columns of its factor B. So a QR decomposition of all factors B, side by
side, leaves only a small matrix to decompose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ..merge.arithmetic.shared_basis import Uniform, dare_ties_in_basis, sum_in_basis, ties_in_basis
from .decomposition import Decomposition, alone, decompose_product, elements_of_product
from .knots_merges import SUM, TIES

__all__ = ["MergeInBasis", "elements_of_knots", "knots_product"]

NOTHING = 1e-12
"""Singular values up to this share of the largest are rounding errors: their vectors are not part of the basis."""


@dataclass(frozen=True)
class MergeInBasis:
    """How products are merged in the basis that they share: by ``merge``, one of ``MERGES``.

    TIES and DARE keep the share ``density`` of each product's values. ``uniform`` makes the random numbers of DARE.
    """

    merge: str
    density: float
    uniform: Uniform

    @property
    def function(self) -> Callable[[Sequence[Array]], Array]:
        """The function that merges the products, each of them a matrix in the shared basis."""
        if self.merge == SUM:
            return sum_in_basis
        if self.merge == TIES:
            return lambda parts: ties_in_basis(np, parts, self.density, NOTHING)
        return lambda parts: dare_ties_in_basis(np, parts, self.density, NOTHING, self.uniform)


def knots_product(
    pairs: Sequence[tuple[Array, Array]], weights: Sequence[float], how: MergeInBasis, rank: int
) -> Decomposition:
    """Return two factors of rank ``rank`` whose product is nearest to the KnOTS merge of several products.

    Each pair is a factor B (rows, r) and a factor A (r, columns), whose product is multiplied by its weight. ``how``
    determines how the products are merged in the shared basis. If the result has a smaller rank, the factors are filled
    with zeros. Raises PlanError for values that are not finite.
    """
    if not all(np.isfinite(one).all() for pair in pairs for one in pair):
        raise PlanError(
            "the factors have values that are not finite.",
            hint="Leave the module out first, with ckpt filter --exclude.",
        )
    with alone():
        basis, parts = _in_basis(pairs, weights)
        if not parts:
            return Decomposition(np.zeros((len(basis), rank)), np.zeros((rank, pairs[0][1].shape[1])), 0.0)
        found = decompose_product(basis, how.function(parts), min(rank, basis.shape[1]))
    more = rank - found.left.shape[1]
    left, right = np.pad(found.left, ((0, 0), (0, more))), np.pad(found.right, ((0, more), (0, 0)))
    return Decomposition(left, right, found.error, found.unsure)


def _in_basis(pairs: Sequence[tuple[Array, Array]], weights: Sequence[float]) -> tuple[Array, list[Array]]:
    """Return (basis, products) for the products of ``pairs``, each multiplied by its weight in ``weights``.

    The weighted products are put side by side as one matrix. The columns of ``basis`` are its left singular vectors,
    without those that are rounding errors (``NOTHING``). ``products`` has the coordinates of each weighted product in
    this basis; it is empty if all products are zero.
    """
    outer, upper = np.linalg.qr(np.hstack([left for left, _ in pairs]))
    ends = np.cumsum([left.shape[1] for left, _ in pairs])[:-1]
    coordinates = [weight * one for weight, one in zip(weights, np.split(upper, ends, axis=1), strict=True)]
    rows = [right for _, right in pairs]
    small = [one @ np.linalg.qr(right.T)[1].T for one, right in zip(coordinates, rows, strict=True)]
    vectors, values, _ = np.linalg.svd(np.hstack(small), full_matrices=False)
    inner = vectors[:, values > NOTHING * values[0]]
    if not inner.shape[1]:
        return outer, []
    return outer @ inner, [inner.T @ one @ right for one, right in zip(coordinates, rows, strict=True)]


def elements_of_knots(rows: int, columns: int, ranks: Sequence[int]) -> int:
    """Return the largest number of float64 values that ``knots_product`` has in memory for factors of these ranks."""
    rank = sum(ranks)
    parts = (len(ranks) + 6) * min(rank, rows) * columns
    return 3 * rank * (rows + columns) + parts + elements_of_product(rows, columns, min(rank, rows))
