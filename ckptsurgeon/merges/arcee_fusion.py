"""Arcee fusion: of a model's changes, those that matter most to what its rows say."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from ..ops import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._pieces import beside, in_pieces, on_host, pieces, row_length
from ._threshold import Rank, cuts

__all__ = ["METHODS"]

_EPSILON = 1e-8


@merge_method(
    "arcee_fusion",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    base="required",
    models=(1, 1),
    by_rows=True,
    passes=4,
)
def arcee_fusion(tensors: Tensors) -> Merging:
    """Return the base and the most important changes of a model.

    A change is as important as its magnitude times the divergence of the row it is in, as a distribution, from the
    base's (Kullback-Leibler, of softmaxes). Taken are those above the median by one and a half times the distance
    between the quartiles, which are exact; mergekit draws a million samples for those of larger tensors.
    """
    columns, total = row_length(tensors), math.prod(tensors.shape)
    if total < 2:
        return lambda at: at.onto(at.delta(0))  # its row is the same distribution, whatever it holds
    rows = np.concatenate([np.zeros(0), *tensors.map(lambda at: _divergences(at, columns))])

    def importance(at: Slice) -> Array:
        delta = at.delta(0)
        size = at.xp.abs(delta)
        begin = at.offset // columns
        where = (at.offset % columns + np.arange(size.shape[0])) // columns + begin
        size *= beside(size, rows[where], at)
        made: Array = size
        return made

    ranks = [Rank(0, int(share * (total - 1)) + 1, largest=False) for share in (0.25, 0.5, 0.75)]
    found = cuts(tensors, lambda at: [importance(at)], ranks, settle=False)
    low, middle, high = (np.float32(cut.value) for cut in found)
    threshold = float(middle + np.float32(1.5) * (high - low))

    def merged(at: Slice) -> Array:
        delta = at.delta(0)
        delta *= importance(at) >= threshold
        return at.onto(delta)

    return in_pieces(merged)


def _divergences(at: Slice, columns: int) -> Array:
    """Return the divergence of each row, in float64: it is a small difference of large sums."""
    found = []
    for piece in pieces(at, columns=columns):
        mine, bases = _softmax(piece, piece.models[0]), _softmax(piece, cast(Array, piece.base))
        found.append(np.clip(on_host(at.xp.sum(mine * at.xp.log(mine / bases), axis=-1)), 0, None))
    return np.concatenate([np.zeros(0), *found])


def _softmax(at: Slice, values: Array) -> Array:
    wide = at.xp.asarray(values, dtype=at.xp.float64)
    powers: Array = at.xp.exp(wide - at.xp.amax(wide, axis=-1)[:, None])
    powers /= at.xp.sum(powers, axis=-1)[:, None]
    powers += _EPSILON
    return powers


METHODS = (arcee_fusion,)
