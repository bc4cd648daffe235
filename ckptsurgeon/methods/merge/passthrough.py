"""Takes one model unchanged, for stacking layers of several models."""

from __future__ import annotations

from ...tensors.ops.regions import Array
from ._method import PerModel, merge_method
from ._slices import Merging, Slice, Tensors

__all__ = ["METHODS"]


@merge_method(
    "passthrough",
    paper="https://arxiv.org/abs/2312.15166",
    compared="mergekit 0.1.5: equal within 1e-6",
    models=(1, 1),
    elementwise=True,
)
def passthrough(tensors: Tensors, *, scale: PerModel = (1.0,)) -> Merging:
    """Return the values of the only model, multiplied by ``scale``."""

    def merged(at: Slice) -> Array:
        return at.models[0] if scale[0] == 1 else at.models[0] * scale[0]

    return merged


METHODS = (passthrough,)
