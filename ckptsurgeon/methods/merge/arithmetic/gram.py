"""Methods whose result is a sum of the inputs, with factors that depend on their lengths and angles alone.

All of those are in the Gram matrix, the products of each input with each: one pass over the values in float64, and
what remains is arithmetic on a matrix of a few rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ....tensors.ops.boxes import Array
from .._method import Merging, Slice, Tensors
from .pieces import in_pieces, pieces
from .weights import cancel

__all__ = ["angle", "combination", "gram", "lengths"]


def gram(tensors: Tensors) -> Array:
    """Return the products of what each model adds to the base, or of the models where there is none, in float64."""
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
    """Return the angle of a cosine that rounding may have carried beyond one."""
    return float(np.arccos(np.clip(cosine, -1, 1)))


def combination(factors: Iterable[float]) -> Merging:
    """Return the sum of the deltas times their factors, onto the base where there is one."""
    numbers = [float(factor) for factor in factors]
    widened = cancel(numbers)

    def merged(at: Slice) -> Array:
        deltas = at.wide(at.deltas) if widened else at.deltas
        total = deltas[0] * numbers[0]
        for delta, number in zip(deltas[1:], numbers[1:], strict=True):
            total += delta * number
        return at.onto(total)

    return in_pieces(merged)
