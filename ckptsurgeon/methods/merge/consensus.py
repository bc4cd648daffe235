"""Consensus merging and TALL masks: the elements of the sum of all changes that matter to enough models, or to one.

An element matters to a model if the model's own change is larger there than the sum of all other models' changes, times
a factor.
"""

from __future__ import annotations

from typing import Annotated

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2405.07813"


def _matters(at: Slice, change: Array, total: Array, factor: float) -> Array:
    """Return a mask of the elements of a model's ``change`` that matter to the model.

    An element matters if the magnitude of the change is larger than ``factor`` times the magnitude of ``total`` minus
    the change; ``total`` is the sum of all changes.
    """
    mask: Array = at.xp.abs(change) > at.xp.abs(total - change) * factor
    return mask


def _sum(changes: tuple[Array, ...]) -> Array:
    total = changes[0] + 0.0
    for change in changes[1:]:
        total += change
    return total


@merge_method(
    "consensus",
    paper=_PAPER,
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    elementwise=True,
)
def consensus(
    tensors: Tensors,
    *,
    k: Annotated[int, Between(0)] = 2,
    tall_lambda: Annotated[PerModel, Between(0)] = (0.6,),
    lambda_: float = 1.0,
) -> Merging:
    """Return the base plus the sum of the changes, in the elements that matter to at least ``k`` models.

    An element matters to a model if its change there is larger than ``tall_lambda`` times the sum of the other models'
    changes. With ``k`` = 1, elements that matter to no model are left out; with 2, also elements that matter to only
    one model. With ``k`` = 0, this is task arithmetic. ``lambda`` multiplies the change.
    """

    def merged(at: Slice) -> Array:
        changes = at.deltas
        total, number = _sum(changes), at.xp.zeros_like(changes[0])
        for change, factor in zip(changes, tall_lambda, strict=True):
            number += _matters(at, change, total, factor)
        total *= number >= k
        total *= lambda_
        return at.onto(total)

    return in_pieces(merged)


@merge_method(
    "tall_mask",
    paper=_PAPER,
    compared="FusionBench 0.2.33: equal within 1e-5 (float64: 1e-10)",
    base="required",
    elementwise=True,
)
def tall_mask(
    tensors: Tensors, *, task: Annotated[int, Between(1)], tall_lambda: Annotated[float, Between(0)] = 0.6
) -> Merging:
    """Return the base plus the sum of all changes, in the elements that matter to model ``task``.

    The result approximates this model. Models are counted from 1, in the order given. An element matters to the model
    if its change there is larger than ``tall_lambda`` times the sum of the other models' changes. Raises ConfigError if
    there is no model ``task``.
    """
    if task > tensors.count:
        raise ConfigError(
            f"task is {task}, but there are {tensors.count} models.", hint=f"Use a number from 1 to {tensors.count}."
        )

    def merged(at: Slice) -> Array:
        changes = at.deltas
        total = _sum(changes)
        total *= _matters(at, changes[task - 1], total, tall_lambda)
        return at.onto(total)

    return in_pieces(merged)


METHODS = (consensus, tall_mask)
