"""PCB-merging: weights each element of each change by its size in the model, and by its agreement with others.

The formulas come from the authors' code, https://github.com/duguodong7/pcb-merging. The authors' code ranks the
elements of a whole model, which must then be in memory. Here the elements of each tensor are ranked alone, as in
``ties``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, pieces
from .arithmetic.threshold import MagnitudeRank, cuts
from .linear import combination

__all__ = ["METHODS"]

_OUTER = 1e-4
"""This share of the largest and of the smallest magnitudes of a change is replaced by the next magnitudes."""
_TINY = 1e-12
"""The least sum of weights by which an element is divided."""


@merge_method(
    "pcb",
    paper="https://arxiv.org/abs/2410.02396",
    compared="the authors' formulas: equal within 1e-5 (float64: 1e-12)",
    base="required",
    passes=6,
)
def pcb(tensors: Tensors, *, ratio: Annotated[float, Between(0, 1)] = 0.1, lambda_: float = 1.0) -> Merging:
    """Return the base plus the weighted mean of the changes; weights are scores of importance and of agreement.

    The score of an element of a change grows with its magnitude, relative to the whole tensor, and with its product
    with the sum of all changes. Of each model, the share ``ratio`` of the elements with the highest scores is merged;
    the weights rise from 0 at the lowest of these scores to 1 at the highest. The largest and smallest 0.01 % of the
    magnitudes are replaced by the next magnitudes. A tensor of one element gets the mean of the changes. ``lambda``
    multiplies the change.
    """
    if math.prod(tensors.shape) < 2:
        return combination([lambda_ / tensors.count] * tensors.count)
    spans = _magnitudes(tensors)
    scores = _merged_scores(tensors, spans, ratio)

    def merged(at: Slice) -> Array:
        changes = at.deltas
        total, whole = at.xp.zeros_like(changes[0]), at.xp.zeros_like(changes[0])
        for change, score, span, found in zip(changes, _scored(at, spans), spans, scores, strict=True):
            weight = found.share(at, score)
            whole += weight
            total += at.xp.copysign(span.held(at, at.xp.abs(change)), change) * (change != 0) * weight
        total /= at.xp.clip(whole, _TINY, None)
        total *= lambda_
        return at.onto(total)

    return in_pieces(merged)


@dataclass(frozen=True)
class _Span:
    """A range of values, from ``low`` to ``high``."""

    low: float
    high: float

    def held(self, at: Slice, values: Array) -> Array:
        """Return the values clipped to the range; NaN stays NaN."""
        held: Array = at.xp.clip(values, self.low, self.high)
        return held

    def share(self, at: Slice, values: Array) -> Array:
        """Return the positions of values in the range, from 0 (at ``low``) to 1 (at ``high``).

        If ``low`` equals ``high``, the result is 1 for values that reach ``high``, provided that ``high`` is above 0;
        else 0.
        """
        if not self.high > self.low:
            single: Array = at.xp.asarray(values >= self.high, dtype=values.dtype) * (self.high > 0) + values * 0
            return single
        part: Array = (self.held(at, values) - self.low) / (self.high - self.low)
        return part


def _magnitudes(tensors: Tensors) -> list[_Span]:
    """Return, for each change, the range of its magnitudes without the largest and the smallest 0.01 %."""
    number = int(math.prod(tensors.shape) * _OUTER) + 1
    ranks = [MagnitudeRank(model, number, largest) for model in range(tensors.count) for largest in (False, True)]
    found = [cut.value for cut in cuts(tensors, lambda at: at.deltas, ranks, settle=False)]
    return [_Span(low, high) for low, high in zip(found[::2], found[1::2], strict=True)]


def _scored(at: Slice, spans: Sequence[_Span]) -> list[Array]:
    """Return the scores of all elements of each change: at most 1, negative if an element disagrees with the sum."""
    changes = at.deltas
    total = changes[0] + 0.0
    for change in changes[1:]:
        total += change
    scores = []
    for change, span in zip(changes, spans, strict=True):
        size = span.share(at, at.xp.abs(change)) ** 2
        scores.append(at.xp.exp((size - 1) * len(changes)) * at.xp.tanh(change * total))
    return scores


def _merged_scores(tensors: Tensors, spans: Sequence[_Span], ratio: float) -> list[_Span]:
    """Return the range of each model's merged scores: the highest scores, a share ``ratio`` of all scores.

    ``cuts`` finds thresholds of magnitudes only. So the positive scores are searched first, from the highest on. If
    there are too few of them, the search goes on with the other scores, from the score nearest to zero on.
    """
    total = math.prod(tensors.shape)
    number = max(total - int(total * (1 - ratio)), 1)
    tops = _extremes(tensors, spans, highest=True)
    if number >= total:
        return [_Span(low, high) for low, high in zip(_extremes(tensors, spans, highest=False), tops, strict=True)]

    def both(at: Slice) -> list[Array]:
        scores = _scored(at, spans)
        return [part for one in scores for part in (at.xp.clip(one, 0, None), at.xp.clip(-one, 0, None))]

    ranks = [MagnitudeRank(place, number, largest=place % 2 == 0) for place in range(2 * tensors.count)]
    found = [cut.value for cut in cuts(tensors, both, ranks, settle=False)]
    lows = [above or -below for above, below in zip(found[::2], found[1::2], strict=True)]
    return [_Span(low, high) for low, high in zip(lows, tops, strict=True)]


def _extremes(tensors: Tensors, spans: Sequence[_Span], *, highest: bool) -> list[float]:
    """Return the highest score of each change, or the lowest."""

    def look(at: Slice) -> list[list[float]]:
        extreme = at.xp.max if highest else at.xp.min
        return [[float(extreme(one)) for one in _scored(piece, spans)] for piece in pieces(at)]

    every = [found for several in tensors.map(look) for found in several]
    return [max(several) if highest else min(several) for several in zip(*every, strict=True)]


METHODS = (pcb,)
