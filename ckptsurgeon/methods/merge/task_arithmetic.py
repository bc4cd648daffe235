"""Adds what models have learned to their base: task arithmetic, and TIES, which resolves disagreements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from ...tensors.ops.regions import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import Between, PerModel
from .arithmetic.tasks import DeltaMixing, Masks, everything, mixed
from .arithmetic.threshold import MagnitudeRank, cuts

__all__ = ["METHODS"]


@merge_method("task_arithmetic", paper="https://arxiv.org/abs/2212.04089", base="required", elementwise=True)
def task_arithmetic(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base and the weighted sum of what each model adds to it.

    ``int8_mask`` has no effect: it exists because mergekit's recipes have it.
    """
    return mixed(tensors, everything, DeltaMixing(weight, normalize, False, lambda_))


def _keeps_all(parameters: Mapping[str, Any]) -> bool:
    """Return whether nothing is dropped, and so no rank over the whole tensor is needed."""
    density = parameters["density"]
    shares = density if isinstance(density, (list, tuple)) else (density,)
    return all(share in (0, 1) for share in shares) and not parameters["rescale"]


@merge_method("ties", paper="https://arxiv.org/abs/2306.01708", base="required", passes=5, elementwise=_keeps_all)
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
    """Return the base and the mean of the largest changes, of those with the sign of the majority.

    Of each model's delta the share ``density`` of largest magnitude is kept; if deltas disagree, those against the
    sign of their weighted sum are dropped. ``normalize`` divides what is left by the weights of those that it is of,
    element by element; if these sum to zero, it is not divided. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _largest(tensors, density), how)


def _largest(tensors: Tensors, density: PerModel) -> Masks:
    """Keep the largest magnitudes of each delta: a share of them, at least one if the share is not zero."""
    total = math.prod(tensors.shape)
    thinned = [model for model, share in enumerate(density) if 0 < share < 1]
    ranks = [MagnitudeRank(place, max(1, int(density[model] * total))) for place, model in enumerate(thinned)]
    found = cuts(tensors, lambda at: [at.delta(model) for model in thinned], ranks)
    cut = dict(zip(thinned, found, strict=True))

    def masks(at: Slice, model: int, delta: Array) -> Array | bool:
        return cut[model].holds(at, at.xp.abs(delta)) if model in cut else density[model] > 0

    return masks


METHODS = (task_arithmetic, ties)
