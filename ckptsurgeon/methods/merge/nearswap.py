"""NearSwap: keeps the values of a model that are near the values of the base."""

from __future__ import annotations

from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces

__all__ = ["METHODS"]

_NEAREST = 1e-6
"""A difference of smaller magnitude is replaced by this divisor, to avoid a division by zero."""


@merge_method(
    "nearswap",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    models=(1, 1),
    elementwise=True,
)
def nearswap(tensors: Tensors, *, t: Annotated[float, Between(0)]) -> Merging:
    """Return the model's value if it differs from the base by no more than ``t``, else a value nearer to the base.

    This value is the base plus ``t`` or minus ``t``, in the direction of the model's value.
    """

    def merged(at: Slice) -> Array:
        delta = at.delta(0)
        delta *= at.xp.clip(t / at.xp.clip(at.xp.abs(delta), _NEAREST, None), 0, 1)
        return at.onto(delta)

    return in_pieces(merged)


METHODS = (nearswap,)
