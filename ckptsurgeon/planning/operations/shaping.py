"""The operations on one tensor: split, unstack, copy, transpose, permute, reshape, scale."""

from __future__ import annotations

from math import prod

from ...errors import PlanError
from ...tensors.composition import cut, permute, reshape, scale
from ...tensors.info import TensorInfo
from ...util.text import count, escape, shape_text
from .operation import INDEX, Operation

__all__ = ["dimension", "reshaped_by", "split_by"]

UNSTACKED = 100_000
"""Tensors that one may be unstacked into: a list of experts or layers, not the rows of a vocabulary."""


def dimension(operation: Operation, dim: int, key: str, dims: int) -> int:
    """Return a dimension counted from the front; raises PlanError where the tensor has no such."""
    if not -dims <= dim < dims:
        hint = "A module's bias has fewer dimensions than its weight: name the weight alone."
        raise PlanError(f"{operation}: {escape(key)} has {count(dims, 'dimension')}, no dimension {dim}.", hint=hint)
    return dim % dims


def split_by(operation: Operation, key: str, info: TensorInfo) -> dict[str, TensorInfo]:
    """Return what a split, unstack or copy makes of a tensor, by name."""
    made: dict[str, TensorInfo] = {}
    if operation.verb == "copy":
        for rule in operation.rules:
            _put(made, rule.apply(key), info, key)
        return made
    dim = dimension(operation, operation.fields["dim"], key, len(info.shape))
    size = info.shape[dim]
    if operation.verb == "unstack":
        if size > UNSTACKED:
            raise PlanError(f"{operation}: {escape(key)} would become {size} tensors, over {UNSTACKED}.")
        rest = (*info.shape[:dim], *info.shape[dim + 1 :])
        for index in range(size):
            _put(made, operation.rules[0].apply(key, {INDEX: str(index)}), reshape(cut(info, dim, index, 1), rest), key)
        return made
    at = 0
    for rule, part in zip(operation.rules, _sizes(operation, key, info, dim), strict=True):
        _put(made, rule.apply(key), cut(info, dim, at, part), key)
        at += part
    return made


def _put(made: dict[str, TensorInfo], name: str | None, info: TensorInfo, key: str) -> None:
    if name is None or name in made:
        raise PlanError(f"two parts of {escape(key)} become {escape(name or '')}.", hint="Give each its own name.")
    made[name] = info


def _sizes(operation: Operation, key: str, info: TensorInfo, dim: int) -> list[int]:
    """Return how much of a dimension each part of a split gets."""
    parts, size = len(operation.rules), info.shape[dim]
    sizes = list(operation.fields["sizes"])
    if not sizes and size % parts:
        hint = "Give their sizes."
        raise PlanError(
            f"{operation}: {escape(key)} has {size} in dimension {dim}, not {parts} equal parts.", hint=hint
        )
    sizes = sizes or [size // parts] * parts
    if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != size:
        raise PlanError(
            f"{operation}: sizes {sizes} are for {count(len(sizes), 'part')} and {sum(sizes)} in all; "
            f"{escape(key)} has {size} for {parts}."
        )
    return sizes


def reshaped_by(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return what an operation in place makes of a tensor."""
    if operation.verb == "scale":
        return scale(info, float(operation.fields["by"]))
    if operation.verb == "reshape":
        return reshape(info, _shape(operation, key, info))
    return permute(info, _dims(operation, key, len(info.shape)))


def _dims(operation: Operation, key: str, dims: int) -> tuple[int, ...]:
    """Return the order of dimensions that a transpose or permute gives."""
    wanted = operation.fields["dims"]
    if operation.verb == "permute":
        order = tuple(dimension(operation, dim, key, dims) for dim in wanted)
        if sorted(order) != list(range(dims)):
            raise PlanError(f"{operation}: dims {list(wanted)} do not name each of {escape(key)}'s {dims} once.")
        return order
    if not wanted and dims != 2:
        raise PlanError(
            f"{operation}: {escape(key)} has {count(dims, 'dimension')}, not two.",
            hint="Name the weight alone, or say which: dims: [0, 1].",
        )
    first, second = (dimension(operation, dim, key, dims) for dim in wanted or (0, 1))
    order = tuple(range(dims))
    swapped = {first: second, second: first}
    return tuple(swapped.get(dim, dim) for dim in order)


def _shape(operation: Operation, key: str, info: TensorInfo) -> tuple[int, ...]:
    """Return the shape that a reshape gives; one -1 in it stands for what is left."""
    shape = list(operation.fields["shape"])
    known = prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and known and info.numel % known == 0:
        shape[shape.index(-1)] = info.numel // known
    if min(shape, default=1) < 0 or prod(shape) != info.numel:
        raise PlanError(
            f"{operation}: {escape(key)} is {shape_text(info.shape)}, which does not fit "
            f"{shape_text(tuple(operation.fields['shape']))}."
        )
    return tuple(shape)
