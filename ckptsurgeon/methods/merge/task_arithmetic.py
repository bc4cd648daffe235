"""Adds the changes of models to their base: task arithmetic."""

from __future__ import annotations

from ._method import PerModel, merge_method
from ._slices import Merging, Tensors
from .arithmetic.deltas import DeltaMixing, everything, mixed

__all__ = ["METHODS"]


@merge_method(
    "task_arithmetic",
    paper="https://arxiv.org/abs/2212.04089",
    compared="mergekit 0.1.5: equal within 1e-6",
    base="required",
    elementwise=True,
)
def task_arithmetic(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    normalize: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base plus the weighted sum of the models' differences to it.

    ``int8_mask`` has no effect: it exists because mergekit's recipes have it.
    """
    return mixed(tensors, everything, DeltaMixing(weight, normalize, False, lambda_))


METHODS = (task_arithmetic,)
