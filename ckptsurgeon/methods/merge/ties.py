"""TIES: adds the models' changes to their base, without small changes and without changes of a minority's sign."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors
from .arithmetic.deltas import DeltaMixing, Masks, mixed
from .arithmetic.threshold import MagnitudeRank, cuts

__all__ = ["METHODS"]


def _keeps_all(parameters: Mapping[str, Any]) -> bool:
    """Return whether ``parameters`` keep or drop only whole models (each density is 0 or 1), without rescaling."""
    density = parameters["density"]
    shares = density if isinstance(density, (list, tuple)) else (density,)
    return all(share in (0, 1) for share in shares) and not parameters["rescale"]


@merge_method(
    "ties",
    paper="https://arxiv.org/abs/2306.01708",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    passes=5,
    elementwise=_keeps_all,
)
def ties(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the mean of the largest changes that have the sign of the majority.

    A change is the difference of a model to the base. Of the elements of each model's change, the share ``density``
    with the largest magnitudes is kept. If the models disagree in an element, changes against the sign of the weighted
    sum are dropped. ``normalize`` divides each element by the sum of the weights of the models that are left there,
    unless this sum is zero. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _largest(tensors, density), how)


def _largest(tensors: Tensors, density: PerModel) -> Masks:
    """Return a function that returns the mask of the largest magnitudes of a model's difference to the base.

    The mask keeps the share ``density`` of the model, and at least one element, unless ``density`` is zero.
    """
    total = math.prod(tensors.shape)
    thinned = [model for model, share in enumerate(density) if 0 < share < 1]
    ranks = [MagnitudeRank(place, max(1, int(density[model] * total))) for place, model in enumerate(thinned)]
    found = cuts(tensors, lambda at: [at.delta(model) for model in thinned], ranks)
    cut = dict(zip(thinned, found, strict=True))

    def masks(at: Slice, model: int, delta: Array) -> Array | bool:
        return cut[model].holds(at, at.xp.abs(delta)) if model in cut else density[model] > 0

    return masks


METHODS = (ties,)
