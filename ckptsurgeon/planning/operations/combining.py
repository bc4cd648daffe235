"""The operation combine: replaces each group of elements along a dimension by their mean, which may be weighted."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PlanError
from ...tensors.composition import averaged, cut, join, total
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from .operation import Operation, groups_of
from .resizing import dimension

__all__ = ["combined"]

_MANY = 16
"""Groups with more elements that follow each other are read together."""


def combined(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return a tensor with one element along a dimension for each group of elements: their mean, or weighted mean.

    Raises PlanError if an index or the number of weights does not fit the dimension, or if weights of a group sum to 0.
    """
    dim = dimension(operation, operation.fields["dim"], key, len(info.shape))
    groups, weights = groups_of(operation.fields["groups"]), operation.fields["weights"]
    size = info.shape[dim]
    if max(map(max, groups)) >= size:
        raise PlanError(
            f"{operation}: dimension {dim} of {escape(key)} has size {size}, but the groups "
            f"{escape(operation.fields['groups'], 60)} list the index {max(map(max, groups))}.",
            hint=f"Indices are below {size}.",
        )
    if weights and len(weights) != size:
        raise PlanError(
            f"{operation}: {count(len(weights), 'weight')} are given, but dimension {dim} of {escape(key)} has "
            f"{size} elements, and each needs a weight."
        )
    by = weights or [1] * size
    return join([_mean(operation, info, dim, group, [by[at] for at in group]) for group in groups], dim)


def _mean(
    operation: Operation, info: TensorInfo, dim: int, group: Sequence[int], weights: Sequence[float]
) -> TensorInfo:
    """Return the weighted mean of the elements ``group`` along ``dim``, rounded once to the dtype of the tensor.

    Raises PlanError if the weights sum to 0.
    """
    parts = [cut(info, dim, at, 1) for at in group]
    if len(parts) == 1:
        return parts[0]
    if len(parts) > _MANY and group == [*range(group[0], group[-1] + 1)] and len(set(weights)) == 1 and weights[0]:
        return averaged(cut(info, dim, group[0], len(group)), dim)  # is read once, not once for each element
    whole = sum(weights)
    if len(set(weights)) == 1 and whole:
        return total(parts, is_mean=True)
    if not whole:
        raise PlanError(
            f"{operation}: all weights of the elements {'+'.join(map(str, group))} are 0, so that they have no mean.",
            hint="Give at least one of them a weight above 0.",
        )
    return total(parts, weights=[by / whole for by in weights])
