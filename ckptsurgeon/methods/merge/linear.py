"""The weighted mean of the models, element by element."""

from __future__ import annotations

from ._method import PerModel, merge_method
from ._slices import Merging, Tensors
from .arithmetic.sums import combination, shares

__all__ = ["METHODS"]


@merge_method(
    "linear", paper="https://arxiv.org/abs/2203.05482", compared="mergekit 0.1.5: equal within 1e-6", elementwise=True
)
def linear(tensors: Tensors, *, weight: PerModel, normalize: bool = True) -> Merging:
    """Return the weighted mean of the models, or their weighted sum if ``normalize`` is off."""
    return combination(shares(weight) if normalize else weight)


METHODS = (linear,)
