"""Weighted sums, element by element."""

from __future__ import annotations

from ...tensors.ops.regions import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import PerModel
from .arithmetic.pieces import in_pieces
from .arithmetic.products import cancel, shares

__all__ = ["METHODS"]


@merge_method(
    "linear", paper="https://arxiv.org/abs/2203.05482", compared="mergekit 0.1.5: equal within 1e-6", elementwise=True
)
def linear(tensors: Tensors, *, weight: PerModel, normalize: bool = True) -> Merging:
    """Return the weighted mean of the models, or their weighted sum if ``normalize`` is off."""
    factors = shares(weight) if normalize else weight
    widened = cancel(factors)

    def merged(at: Slice) -> Array:
        models = at.wide(at.models) if widened else at.models
        result = models[0] * factors[0]
        for model, factor in zip(models[1:], factors[1:], strict=True):
            result += model * factor
        return result

    return in_pieces(merged)


METHODS = (linear,)
