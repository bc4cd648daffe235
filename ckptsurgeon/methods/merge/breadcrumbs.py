"""Model breadcrumbs: leaves out the smallest and the largest changes of a model."""

from __future__ import annotations

import math
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors
from .arithmetic.deltas import DeltaMixing, Masks, mixed
from .arithmetic.threshold import MagnitudeRank, cuts

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2312.06795"


@merge_method("breadcrumbs", paper=_PAPER, compared="mergekit 0.1.5: equal within 1e-6", base="required", passes=5)
def breadcrumbs(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    gamma: Annotated[PerModel, Between(0, 1)] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the weighted sum of the changes of medium size.

    A change is the difference of a model to the base. Of the elements of each model's change, the share ``gamma`` with
    the largest magnitudes is left out; then the smallest are left out, until the share ``density`` is kept. If
    ``gamma`` and ``density`` sum to more than 1, a smaller share than ``gamma`` is left out. ``int8_mask``
    has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_)
    return mixed(tensors, _middling(tensors, density, gamma), how)


@merge_method("breadcrumbs_ties", paper=_PAPER, compared="mergekit 0.1.5: equal within 1e-6", base="required", passes=5)
def breadcrumbs_ties(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    gamma: Annotated[PerModel, Between(0, 1)] = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the sum of the changes of medium size that have the sign of the majority.

    Changes are selected as in breadcrumbs. If models disagree in an element, changes against the sign of the weighted
    sum are dropped, as in ties. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _middling(tensors, density, gamma), how)


def _middling(tensors: Tensors, density: PerModel, gamma: PerModel) -> Masks:
    """Return a function that returns the mask of medium magnitudes of a model's difference to the base.

    Of equal magnitudes, the first in memory is taken as the smaller one.
    """
    total = math.prod(tensors.shape)
    thinned = [model for model, share in enumerate(density) if 0 < share < 1]
    ranks = []
    for place, model in enumerate(thinned):
        kept = int(density[model] * total)
        below = max(0, total - kept - int(gamma[model] * total))
        ranks += [MagnitudeRank(place, below, largest=False), MagnitudeRank(place, below + kept, largest=False)]
    found = cuts(tensors, lambda at: [at.delta(model) for model in thinned], ranks)

    def masks(at: Slice, model: int, delta: Array) -> Array | bool:
        if model not in thinned:
            return density[model] > 0
        low, high = found[2 * thinned.index(model) :][:2]
        size = at.xp.abs(delta)
        mask = high.holds(at, size)
        mask &= ~low.holds(at, size)
        return mask

    return masks


METHODS = (breadcrumbs, breadcrumbs_ties)
