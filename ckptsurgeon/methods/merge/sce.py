"""SCE: merges only the elements in which models differ most, and drops changes of the minority's sign.

The weight of a model is the size of its changes in these elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, pieces
from .arithmetic.deltas import KeptElements, StagedMerging, agreement
from .arithmetic.threshold import MagnitudeCut, MagnitudeRank, cuts

__all__ = ["METHODS"]

_TINY = 1e-6
"""If the mean squares of all models sum to less than this, the models have equal weights."""


@merge_method(
    "sce",
    paper="https://arxiv.org/abs/2408.07990",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    passes=6,
)
def sce(tensors: Tensors, *, select_topk: Annotated[float, Between(0, 1)] = 1.0, int8_mask: bool = False) -> Merging:
    """Return the base plus the weighted mean of the models' deltas, for the elements in which the deltas differ most.

    A delta is the difference of a model to the base. Of the elements in which the deltas differ, the share
    ``select_topk`` with the largest variance is merged. The weight of a model is the mean square of its selected
    deltas. Deltas against the sign of their sum are dropped. ``int8_mask`` has no effect.
    """
    cut = _cut(tensors, select_topk)
    weights = _weights(tensors, cut)

    def merged(at: Slice) -> Array:
        deltas = _selected(at, cut)
        agree = agreement(at, deltas)
        total, whole = at.xp.zeros_like(deltas[0]), at.xp.zeros_like(deltas[0])
        for delta, mask, weight in zip(deltas, agree, weights, strict=True):
            mask *= weight
            whole += mask
            delta *= mask
            total += delta
        total /= at.xp.clip(whole, _TINY, None)
        return at.onto(total)

    def kept(at: Slice) -> list[KeptElements]:
        deltas = _selected(at, cut)
        agree = agreement(at, deltas)
        number = at.xp.count_nonzero
        return [
            KeptElements(int(number(at.delta(model))), int(number(delta)), int(number(delta * agree[model])))
            for model, delta in enumerate(deltas)
        ]

    return StagedMerging(in_pieces(merged), kept)


def _variance(at: Slice, deltas: Sequence[Array]) -> Array:
    """Return, for each element, the variance of the deltas; it is exactly zero if they are equal."""
    apart = [delta - deltas[0] for delta in deltas[1:]]
    mean = sum(apart, at.xp.zeros_like(deltas[0])) / len(deltas)
    variance: Array = sum(((one - mean) ** 2 for one in apart), mean**2) / len(deltas)
    return variance


def _cut(tensors: Tensors, share: float) -> MagnitudeCut | None:
    """Return the threshold that selects the largest variances: the share ``share`` of all nonzero variances.

    Returns None if all are selected.
    """
    if share >= 1:
        return None

    def varying(at: Slice) -> int:
        return sum(int(at.xp.count_nonzero(_variance(piece, piece.deltas))) for piece in pieces(at))

    count = int(sum(tensors.map(varying)) * share) if share > 0 else 0
    (cut,) = cuts(tensors, lambda at: [_variance(at, at.deltas)], [MagnitudeRank(0, count)])
    return cut


def _selected(at: Slice, cut: MagnitudeCut | None) -> list[Array]:
    deltas = list(at.deltas)
    if cut is not None:
        mask = cut.holds(at, _variance(at, deltas))
        for delta in deltas:
            delta *= mask
    return deltas


def _weights(tensors: Tensors, cut: MagnitudeCut | None) -> list[float]:
    """Return the weight of each model: its share of the sum of the squares of all selected deltas.

    The shares are equal if nearly all selected deltas are zero.
    """

    def squares(at: Slice) -> list[float]:
        sums = [0.0] * tensors.count
        for piece in pieces(at):
            for model, delta in enumerate(_selected(piece, cut)):
                wide = at.xp.asarray(delta, dtype=at.xp.float64)
                sums[model] += float(wide @ wide)
        return sums

    found = [math.fsum(sums) / max(1, math.prod(tensors.shape)) for sums in zip(*tensors.map(squares), strict=True)]
    total = math.fsum(found)
    if total < _TINY:
        return [1 / tensors.count] * tensors.count
    return [one / total for one in found]


METHODS = (sce,)
