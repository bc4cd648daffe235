"""Weighted sums, element by element."""

from __future__ import annotations

from ..ops import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import PerModel
from ._pieces import in_pieces
from ._weights import sum_of

__all__ = ["METHODS"]


@merge_method("linear", paper="https://arxiv.org/abs/2203.05482")
def linear(tensors: Tensors, *, weight: PerModel, normalize: bool = True) -> Merging:
    """Return the weighted mean of the models, or their weighted sum where ``normalize`` is off."""
    whole = sum_of(weight) if normalize else 1.0
    shares = [each / whole for each in weight]

    def merged(at: Slice) -> Array:
        result = at.models[0] * shares[0]
        for model, share in zip(at.models[1:], shares[1:], strict=True):
            result += model * share
        return result

    return in_pieces(merged)


METHODS = (linear,)
