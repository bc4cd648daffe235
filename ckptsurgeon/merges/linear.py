"""Weighted sums, element by element."""

from __future__ import annotations

from ..errors import PlanError
from ..ops import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import PerModel
from ._pieces import in_pieces

__all__ = ["METHODS"]


@merge_method("linear", paper="https://arxiv.org/abs/2203.05482")
def linear(tensors: Tensors, *, weight: PerModel, normalize: bool = True) -> Merging:
    """Return the weighted mean of the models, or their weighted sum where ``normalize`` is off."""
    total = sum(weight)
    if normalize and abs(total) < 1e-8:
        raise PlanError("the weights sum to zero.", hint="Give others, or normalize=false for a sum.")
    shares = [each / total if normalize else each for each in weight]

    def merged(at: Slice) -> Array:
        result = at.models[0] * shares[0]
        for model, share in zip(at.models[1:], shares[1:], strict=True):
            result += model * share
        return result

    return in_pieces(merged)


METHODS = (linear,)
