"""Interpolates between two models along an arc (slerp, nuslerp)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...tensors.ops.regions import Array
from ._method import PerModel, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, like, on_host, row_length
from .arithmetic.products import PAIRS, angle, column_products, columns_at, gram, lengths, sums_are_large
from .linear import combination

__all__ = ["METHODS"]

_PAPER = "https://doi.org/10.1145/325334.325242"

_STRAIGHT = 0.9995
"""If the magnitude of the cosine of two vectors is larger than this, slerp is linear, as in mergekit."""
_ZERO_LENGTH = 1e-8
"""In slerp, a vector is divided by its length only if it is longer than this."""
_SHORT = 1e-7
"""The smallest length by which nuslerp divides."""
_ALIGNED = 2.0**-24
"""A squared sine that float32 cannot distinguish from zero."""


@merge_method(
    "slerp", paper=_PAPER, compared="mergekit 0.1.5: equal within 1e-6", base="model", models=(2, 2), passes=2
)
def slerp(tensors: Tensors, *, t: float) -> Merging:
    """Return the point ``t`` on the arc between two models: 0 is the base (or the first model), 1 is the other.

    Each tensor is one vector. If the two vectors point in the same or in opposite directions, the point is on the
    straight line between them. If ``t`` is below 0 or above 1, the point is beyond the two, as in mergekit.
    """
    products = gram(tensors)
    norms = [float(norm) if norm > _ZERO_LENGTH else 1.0 for norm in lengths(products)]
    cosine = float(products[0, 1]) / (norms[0] * norms[1])
    if abs(cosine) > _STRAIGHT:
        return combination((1 - t, t))
    theta = angle(cosine)
    return combination((math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)))


def _has_rows(shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
    """Return whether each row is a vector of its own, and not the whole tensor or each column."""
    return len(shape) > 1 and not (parameters["nuslerp_flatten"] or parameters["nuslerp_row_wise"])


def _has_large_columns(shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
    """Return whether each column is a vector, and there are so many columns that tensors are read as a whole."""
    is_by_columns = parameters["nuslerp_row_wise"] and not parameters["nuslerp_flatten"]
    return len(shape) > 1 and bool(is_by_columns) and sums_are_large(shape)


@merge_method(
    "nuslerp",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6",
    base="optional",
    models=(2, 2),
    by_rows=_has_rows,
    passes=2,
    reads_whole=_has_large_columns,
)
def nuslerp(
    tensors: Tensors, *, weight: PerModel, nuslerp_row_wise: bool = False, nuslerp_flatten: bool = True
) -> Merging:
    """Return the point that divides the arc between two models by their weights; the base is the arc's centre.

    With ``nuslerp_flatten`` a tensor is one vector; without it each row (all of the last dimension) is a vector or,
    with ``nuslerp_row_wise``, each column (all of the first dimension). Weights that sum to zero are taken as equal.
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten or len(tensors.shape) < 2:
        products = gram(tensors)
        return combination([float(one) for one in _arc(products[0, 0], products[1, 1], products[0, 1], t)])
    return _by_columns(tensors, t) if nuslerp_row_wise else _by_rows(tensors, t)


def _arc(first: Array, second: Array, both: Array, t: float) -> tuple[Array, Array]:
    """Return two factors: two vectors times these factors have, as their sum, the point ``t`` on the arc between them.

    ``first`` and ``second`` are the dot products of each vector with itself, ``both`` is the dot product of the two.
    All are in float64. They may be arrays, for many pairs of vectors.
    """
    norms = [np.clip(np.sqrt(np.clip(product, 0, None)), _SHORT, None) for product in (first, second)]
    cosine = np.clip(both / (norms[0] * norms[1]), -1, 1)
    aligned = 1 - cosine**2 <= _ALIGNED
    theta = np.arccos(np.where(aligned, 0.0, cosine))
    return (
        np.where(aligned, 1 - t, np.sin((1 - t) * theta) / np.sin(theta)),
        np.where(aligned, t, np.sin(t * theta) / np.sin(theta)),
    )


def _by_rows(tensors: Tensors, t: float) -> Merging:
    def merged(at: Slice) -> Array:
        first, second = at.deltas
        wide = [at.xp.asarray(delta, dtype=at.xp.float64) for delta in (first, second)]
        products = [on_host(at.xp.sum(wide[i] * wide[j], axis=-1)) for i, j in PAIRS]
        near, far = (like(first, factor, at)[:, None] for factor in _arc(products[0], products[1], products[2], t))
        return at.onto(first * near + second * far)

    return in_pieces(merged, row_length(tensors))


def _by_columns(tensors: Tensors, t: float) -> Merging:
    products = column_products(tensors)
    factors = _arc(products[0], products[1], products[2], t)

    def merged(at: Slice) -> Array:
        first, second = at.deltas
        where = columns_at(at, products.shape[1])
        near, far = (like(first, factor[where], at) for factor in factors)
        return at.onto(first * near + second * far)

    return in_pieces(merged)


METHODS = (slerp, nuslerp)
