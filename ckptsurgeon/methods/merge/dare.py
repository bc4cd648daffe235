"""DARE: drop most of a model's changes at random, and rescale the rest to compensate."""

from __future__ import annotations

from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors
from .arithmetic.deltas import DeltaMixing, Masks, mixed

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2311.03099"


@merge_method(
    "dare_linear",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6 if no change is dropped at random",
    base="required",
    passes=2,
)
def dare_linear(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the weighted sum of randomly kept changes.

    Each element of a model's difference to the base is kept with the probability ``density``. With ``rescale`` the kept
    elements are multiplied so that the sum of magnitudes is as before. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_)
    return mixed(tensors, _random(tensors, density), how)


@merge_method(
    "dare_ties",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6 if no change is dropped at random",
    base="required",
    passes=2,
)
def dare_ties(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the sum of randomly kept changes that have the sign of the majority.

    Changes are kept as in dare_linear. If models disagree in an element, changes against the sign of the weighted sum
    are dropped, as in ties. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _random(tensors, density), how)


def _random(tensors: Tensors, density: PerModel) -> Masks:
    def masks(at: Slice, model: int, delta: Array) -> Array | bool:
        if not 0 < density[model] < 1:
            return density[model] > 0
        mask: Array = tensors.uniform(at, model) < density[model]
        return mask

    return masks


METHODS = (dare_linear, dare_ties)
