"""Cuts parameters out of the flat vectors in which ZeRO's ranks hold them (Rajbhandari et al., arXiv:1910.02054)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ...errors import FormatError, UnsafeError
from ...tensors.composition import cut, join, reshape
from ...tensors.info import TensorInfo
from ..base import limits

__all__ = ["Flat", "of_stage_2", "of_stage_3"]

Flat = list[TensorInfo]
"""The flat vectors of one rank, one for each group of parameters."""
Shapes = Mapping[str, tuple[int, ...]]


def of_stage_2(groups: Sequence[Shapes], ranks: Sequence[Flat], paddings: Any = None) -> dict[str, TensorInfo]:
    """Return the parameters of stages 1 and 2: the ranks' pieces of a group, one behind the other, are its vector.

    ``paddings`` are the elements left free behind each parameter of each group, where there are any.
    """
    _check_number(groups, ranks)
    if len(groups) != len(ranks[0]):
        raise FormatError(f"there are {len(groups)} groups of parameters and {len(ranks[0])} of values.", rule="zero")
    made: dict[str, TensorInfo] = {}
    for number, shapes in enumerate(groups):
        vector = join([_same(rank[number], ranks[0][number]) for rank in ranks], 0)
        free = _paddings(paddings, number, len(shapes))
        at = 0
        for (name, shape), padding in zip(shapes.items(), free, strict=True):
            made[name] = _taken(vector, at, shape, name)
            at += prod(shape) + padding
        _check_used(at, vector.numel, align=2 * len(ranks))
    return made


def of_stage_3(groups: Sequence[Shapes], ranks: Sequence[Flat]) -> dict[str, TensorInfo]:
    """Return the parameters of stage 3: of each parameter every rank has a piece of the same size, the last padded."""
    _check_number(groups, ranks)
    vectors = [join([_same(one, rank[0]) for one in rank], 0) for rank in ranks if rank]
    if len(vectors) != len(ranks) or len({vector.numel for vector in vectors}) > 1:
        raise FormatError("the ranks do not hold vectors of one size.", rule="zero")
    made: dict[str, TensorInfo] = {}
    at = 0
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        share = -(-prod(shape) // len(ranks))
        if at + share > vectors[0].numel:
            raise FormatError(f"the ranks hold too few values for {name!r:.80}.", rule="zero")
        if share:
            pieces = [cut(_same(vector, vectors[0]), 0, at, share) for vector in vectors]
            made[name] = reshape(cut(join(pieces, 0), 0, 0, prod(shape)), shape)
        else:
            made[name] = reshape(cut(vectors[0], 0, 0, 0), shape)
        at += share
    _check_used(at, vectors[0].numel, align=1)
    return made


def _check_number(groups: Sequence[Shapes], ranks: Sequence[Flat]) -> None:
    """Raise UnsafeError where there would be pieces without end: each parameter may lie with every rank."""
    pieces = sum(map(len, groups)) * len(ranks)
    if pieces > limits.ZERO_PIECES:
        raise UnsafeError(f"there are up to {pieces} pieces of parameters, over the limit.", rule="pieces")


def _taken(vector: TensorInfo, at: int, shape: tuple[int, ...], name: str) -> TensorInfo:
    if at + prod(shape) > vector.numel:
        raise FormatError(f"the ranks hold too few values for {name!r:.80}.", rule="zero")
    return reshape(cut(vector, 0, at, prod(shape)), shape)


def _same(info: TensorInfo, first: TensorInfo) -> TensorInfo:
    if info.dtype != first.dtype:
        raise FormatError(f"the ranks hold values of {first.dtype} and {info.dtype}.", rule="zero")
    return info


def _paddings(paddings: Any, group: int, number: int) -> Sequence[int]:
    """Return the free elements behind each parameter of a group."""
    if paddings is None:
        return [0] * number
    of_group = paddings[group] if isinstance(paddings, (list, tuple)) and group < len(paddings) else None
    if not isinstance(of_group, (list, tuple)) or len(of_group) != number:
        raise FormatError("the paddings of the parameters are not as many as they are.", rule="zero")
    if not all(type(one) is int and 0 <= one < 2**40 for one in of_group):
        raise FormatError("the paddings of the parameters are no sizes.", rule="zero")
    return of_group


def _check_used(used: int, there: int, align: int) -> None:
    """Raise FormatError where values are left over beyond what aligning a vector for all ranks adds."""
    if -(-used // align) != -(-there // align):
        raise FormatError(f"{used} of the {there} values that the ranks hold are used.", rule="zero")
