"""Arcee fusion: keeps the most important changes of a model. Rows are compared as probability distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np

from ...tensors.ops.regions import Array
from ._method import merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, like, on_host, pieces, row_length
from .arithmetic.threshold import MagnitudeRank, cuts

__all__ = ["METHODS"]

_EPSILON = 1e-8
"""The number that is added to each probability, so that none is zero."""

MOST = 4 << 20
"""How many bytes of divergences may stay in memory; if there are more, they are computed again in every pass."""

Divergences: TypeAlias = Callable[[Slice], Array]
"""A function that returns the divergence of each row of a slice, in float64."""


@merge_method(
    "arcee_fusion",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    models=(1, 1),
    by_rows=True,
    passes=4,
)
def arcee_fusion(tensors: Tensors) -> Merging:
    """Return the base plus the most important changes of a model.

    The importance of a change is its magnitude times the divergence of its row from the base's row (Kullback-Leibler,
    between their softmaxes). A change is taken if its importance exceeds the median by at least one and a half times
    the distance between the quartiles. Median and quartiles are exact; mergekit estimates them from a million samples
    if a tensor has more elements.
    """
    columns, total = row_length(tensors), math.prod(tensors.shape)
    if total < 2:
        return lambda at: at.onto(at.delta(0))  # a row of one element is always the same distribution
    divergence = _kept(tensors, columns) if total // columns * 8 <= MOST else _divergence

    def importance(at: Slice) -> Array:
        size = at.xp.abs(at.delta(0))
        size *= like(size, divergence(at), at)[:, None]
        made: Array = size
        return made

    ranks = [MagnitudeRank(0, int(share * (total - 1)) + 1, largest=False) for share in (0.25, 0.5, 0.75)]
    found = cuts(tensors, lambda at: [importance(at)], ranks, columns=columns, settle=False)
    low, middle, high = (np.float32(cut.value) for cut in found)
    threshold = float(middle + np.float32(1.5) * (high - low))

    def merged(at: Slice) -> Array:
        delta = at.delta(0)
        delta *= importance(at) >= threshold
        return at.onto(delta)

    return in_pieces(merged, columns)


def _kept(tensors: Tensors, columns: int) -> Divergences:
    """Compute the divergences of all rows; return a function that returns the divergences of the rows in a slice."""

    def look(at: Slice) -> Array:
        return np.concatenate([np.zeros(0), *(_divergence(piece) for piece in pieces(at, columns=columns))])

    rows = np.concatenate([np.zeros(0), *tensors.map(look)])
    return lambda at: rows[at.offset // columns :][: at.models[0].shape[0]]


def _divergence(at: Slice) -> Array:
    """Return the divergence of each row of a piece, in float64: a divergence is a small difference of large sums."""
    mine, parts = _softmax(at, at.models[0]), _softmax(at, cast(Array, at.base))
    at.xp.divide(mine, parts, out=parts)
    at.xp.log(parts, out=parts)
    parts *= mine
    return np.clip(on_host(at.xp.sum(parts, axis=-1)), 0, None)


def _softmax(at: Slice, values: Array) -> Array:
    powers: Array = at.xp.asarray(values, dtype=at.xp.float64)
    powers = powers - at.xp.amax(powers, axis=-1)[:, None]
    at.xp.exp(powers, out=powers)
    powers /= at.xp.sum(powers, axis=-1)[:, None]
    powers += _EPSILON
    return powers


METHODS = (arcee_fusion,)
