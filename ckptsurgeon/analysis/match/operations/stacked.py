"""Finds stacks by shapes: one model has one tensor for all experts (or layers), the other a tensor for each expert."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ....tensors.info import TensorInfo
from ..module_groups import KERNEL
from ..parts import Parts, agree, parts_of
from ..proposal import Tensors
from .places import NUMBER, place_of

__all__ = ["Stacked", "find_stacked", "numbered_lists", "stacks_not_compared"]

_OPEN = "several stacks have fitting shapes, or the matrices in them may be transposed"
MOST = 256
"""At most this many stacks, and this many lists of tensors, are compared in one layer."""


@dataclass(frozen=True)
class Stacked:
    """A tensor of one model, and the tensors ``parts`` of the other that are its elements along dimension 0.

    ``stacks`` has the key of this tensor. It has several keys if several tensors fit; then ``unknown`` is the reason
    why none was chosen. ``turned`` is true if the matrices in the stack are transposed. ``why`` is the evidence: name,
    shape or transposed.
    """

    stacks: tuple[str, ...]
    parts: tuple[str, ...]
    turned: bool = False
    unknown: str = ""
    why: str = "shape"


def find_stacked(stacks: Tensors, singles: Tensors, models: tuple[Tensors, Tensors]) -> Iterator[Stacked]:
    """Yield the tensors in ``stacks`` that are stacks of ``singles``; no tensor of either has a partner yet.

    ``models`` are all tensors of the two models: their names show which part of a transformer block a tensor may be.
    """
    parts = _named_parts(models[0]), _named_parts(models[1])
    found = [
        one
        for whole, some in _layers(stacks, singles)
        if max(len(some), len(whole)) <= MOST
        for one in _in_layer(whole, some, (stacks, singles), parts)
    ]
    yield from _stored_alike(found, singles)


def stacks_not_compared(stacks: Tensors, singles: Tensors) -> int:
    """Return the number of ``stacks`` that are not compared, because their layers have too many stacks or tensors."""
    return sum(len(whole) for whole, some in _layers(stacks, singles) if max(len(some), len(whole)) > MOST)


def _layers(stacks: Tensors, singles: Tensors) -> list[tuple[list[str], list[list[str]]]]:
    """Return, for each layer, its possible stacks, and its lists of tensors that may be the elements of a stack."""
    by_layer: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key, info in stacks.items():
        if len(info.shape) > 1:
            by_layer[place_of(key).numbers].append(key)
    lists: dict[tuple[int, ...], list[list[str]]] = defaultdict(list)
    for numbers, keys in numbered_lists(singles):
        if numbers in by_layer:
            lists[numbers].append(keys)
    return [(by_layer[numbers], some) for numbers, some in lists.items()]


def _stored_alike(found: Sequence[Stacked], singles: Tensors) -> Iterator[Stacked]:
    """Yield the stacks ``found``, some of which are changed to stacks of transposed matrices.

    The shape of square matrices does not show whether they are transposed. They count as transposed if the matrices in
    all other stacks with the same last segment in their keys are transposed.
    """
    kinds: dict[str, set[bool]] = defaultdict(set)
    for one in found:
        if not one.unknown and not _is_square(singles[one.parts[0]]):
            kinds[one.stacks[0].rpartition(".")[2]].add(one.turned)
    for one in found:
        is_like = not one.unknown and _is_square(singles[one.parts[0]])
        is_turned = is_like and kinds[one.stacks[0].rpartition(".")[2]] == {True}
        yield replace(one, turned=True, why="transposed") if is_turned else one


def _is_square(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.shape[0] == info.shape[1]


def _named_parts(tensors: Tensors) -> dict[str, Parts]:
    """Return {key: parts of a transformer block that the tensor may be}.

    A key that does not end in weight, bias or kernel, such as ``experts.gate_proj``, is read as the name of a module.
    """
    leaves = ("weight", "bias", KERNEL)
    modules = {key: key if key.rpartition(".")[2] in leaves else f"{key}.weight" for key in tensors}
    parts = parts_of(modules.values())
    return {key: parts[module] for key, module in modules.items()}


def numbered_lists(singles: Tensors) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """Yield (the equal numbers in the keys, keys) for tensors of one shape whose keys differ in one number, from 0 on.

    In the keys ``layers.3.experts.{0,1}.w``, the equal numbers are (3,). The number that differs is the last number in
    the keys (of an expert); if no keys differ in the last number, it is the first number (of a layer).
    """
    alone = list(singles)
    for end in (-1, 0):
        groups: dict[tuple[str, tuple[int, ...]], dict[int, str]] = defaultdict(dict)
        for key in alone:
            segments = key.split(".")
            numbers = [at for at, part in enumerate(segments) if NUMBER.fullmatch(part)]
            if numbers:
                name = ".".join([*segments[: numbers[end]], "", *segments[numbers[end] + 1 :]])
                groups[name, singles[key].shape][int(segments[numbers[end]])] = key
        alone = [key for keys in groups.values() if len(keys) == 1 for key in keys.values()]
        for (name, _), keys in groups.items():
            if len(keys) > 1 and sorted(keys) == list(range(len(keys))):
                others = tuple(int(part) for part in name.split(".") if NUMBER.fullmatch(part))
                yield others, [keys[number] for number in sorted(keys)]


def _in_layer(
    stacks: Sequence[str],
    lists: Sequence[list[str]],
    tensors: tuple[Tensors, Tensors],
    parts: tuple[Mapping[str, Parts], Mapping[str, Parts]],
) -> Iterator[Stacked]:
    fits = [
        (stack, keys, turned)
        for stack in stacks
        for keys in lists
        if (turned := _turned(tensors[0][stack].shape, len(keys), tensors[1][keys[0]].shape)) is not None
        and agree(parts[0].get(stack, frozenset()), parts[1].get(keys[0], frozenset()))
    ]
    sure = [fit for fit in fits if parts[0].get(fit[0]) and parts[1].get(fit[1][0])]
    taken: set[str] = set()
    for why, options in (("name", sure), ("shape", fits)):
        left = [fit for fit in options if fit[0] not in taken and taken.isdisjoint(fit[1])]
        rivals = Counter(one for stack, keys, _ in left for one in (stack, keys[0]))
        for stack, keys, turned in left:
            if rivals[stack] == rivals[keys[0]] == 1:
                taken |= {stack, *keys}
                yield Stacked((stack,), tuple(keys), turned, why=why)
    left = [fit for fit in fits if fit[0] not in taken and taken.isdisjoint(fit[1])]
    if left:
        names = (
            tuple(dict.fromkeys(fit[0] for fit in left)),
            tuple(dict.fromkeys(key for fit in left for key in fit[1])),
        )
        yield Stacked(*names, unknown=_OPEN)


def _turned(stack: tuple[int, ...], number: int, single: tuple[int, ...]) -> bool | None:
    """Return whether the matrices of a stack are transposed; None if its shape does not fit."""
    if stack == (number, *single):
        return False
    return True if len(single) == 2 and stack == (number, *single[::-1]) else None
