"""Model stock: goes from the base towards the mean of the models, as far as the angles between them suggest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ...tensors.ops.regions import Array
from ._method import merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, like, on_host, row_length
from .arithmetic.products import gram, lengths
from .linear import combination

__all__ = ["METHODS"]

_SHORT, _SINGULAR = 1e-6, 1e-6
"""The smallest divisors in the formulas for the cosine and for the ratio, which says how far to go from the base.

A smaller product of two norms is replaced by the first number. If the divisor of the ratio is smaller than the second
number, the ratio is 0.
"""


_PAPER = "https://arxiv.org/abs/2403.19522"


def _has_rows(shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
    """Return whether each row has an angle of its own; else the whole tensor has one angle."""
    return len(shape) > 1 and bool(parameters["filter_wise"])


@merge_method(
    "model_stock",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    models=(2, None),
    by_rows=_has_rows,
    passes=2,
)
def model_stock(tensors: Tensors, *, filter_wise: bool = False) -> Merging:
    """Return the point between the base and the mean of the models: the wider their mean angle, the nearer to the base.

    The angles are between the models' differences to the base. With ``filter_wise`` each row (all of the last
    dimension) has its own angle.
    """
    if filter_wise and len(tensors.shape) > 1:
        return _by_rows(tensors)
    products = gram(tensors)
    norms = lengths(products)
    pairs = list(combinations(range(tensors.count), 2))
    cosines = [products[i, j] / max(norms[i] * norms[j], _SHORT) for i, j in pairs]
    ratio = float(_ratio(np.mean(np.clip(cosines, -1, 1)), tensors.count))
    return combination([ratio / tensors.count] * tensors.count)


def _by_rows(tensors: Tensors) -> Merging:
    pairs = list(combinations(range(tensors.count), 2))

    def merged(at: Slice) -> Array:
        xp, deltas = at.xp, at.deltas
        wide = [xp.asarray(delta, dtype=xp.float64) for delta in deltas]
        norms = [np.sqrt(on_host(xp.sum(delta * delta, axis=-1))) for delta in wide]
        products = [on_host(xp.sum(wide[i] * wide[j], axis=-1)) for i, j in pairs]
        cosines = [
            product / np.clip(norms[i] * norms[j], _SHORT, None)
            for product, (i, j) in zip(products, pairs, strict=True)
        ]
        ratio = _ratio(np.mean(np.clip(cosines, -1, 1), axis=0), tensors.count)
        total = sum(deltas[1:], deltas[0])
        return at.onto(total * like(total, ratio / tensors.count, at)[:, None])

    return in_pieces(merged, row_length(tensors))


def _ratio(cosine: Array, count: int) -> Array:
    """Return the position of the result between base (0) and mean (1); 0 if the models point in opposite directions."""
    below = 1 + (count - 1) * cosine
    singular = np.abs(below) < _SINGULAR
    ratio: Array = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, below))
    return ratio


METHODS = (model_stock,)
