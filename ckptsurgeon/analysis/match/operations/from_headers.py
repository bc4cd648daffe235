"""Proposes operations by names and shapes: fused projections, stacks, transposed matrices, 1x1 convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ....planning.keys.transposed import square_siblings
from ....tensors.info import TensorInfo
from ..proposal import Proposal, Undecided
from ..propose import propose
from ..units import KERNEL
from .fused import Fused, find_fused
from .places import shown
from .stacked import Stacked, find_stacked
from .steps import JOIN, ORDER, RETURN, STACK, TURN, UNSTACK, Change, Step, free_name

__all__ = ["header_changes", "reordered"]

Tensors = Mapping[str, TensorInfo]
_LIST = re.compile(r"^((?:[^.]*\.)*?)\d+\..*?([^.]*)$")
"""Matches a key in a list of layers; its groups are the text before the first number, and the last segment."""
TURNED = "transposed"


def header_changes(found: Proposal, source: Tensors, destination: Tensors) -> tuple[list[Change], list[Undecided]]:
    """Return the operations that names and shapes show, and what they leave open.

    ``found`` has the tensors that are only renamed; these are not used again.
    """
    changes = [*_transposes(found, source)]
    open_: list[Undecided] = []
    left = _Left(found, source, destination, changes)
    kinds = found.turned, {new: old for old, new in found.turned.items()}
    names = found.names, {new: old for old, new in found.names.items()}
    turned = [_stored(*pair) for pair in ((kinds[0], names[0], source), (kinds[1], names[1], destination))]
    for fused in list(find_fused(left.source, left.destination, turned[0])):
        left.take(_split(fused, source, destination), changes, open_, (fused.whole,), fused.parts, fused.open)
    for fused in list(find_fused(left.destination, left.source, turned[1])):
        left.take(_concat(fused, source), changes, open_, fused.parts, (fused.whole,), fused.open)
    for stack in list(find_stacked(left.destination, left.source, (destination, source))):
        left.take(_stack(stack, source), changes, open_, stack.parts, stack.stacks, stack.open)
    for stack in list(find_stacked(left.source, left.destination, (source, destination))):
        left.take(_unstack(stack, source), changes, open_, stack.stacks, stack.parts, stack.open)
    changes += _squeezed(left.source, left.destination)
    return changes, _by_layer(open_)


class _Left:
    """The tensors of both models that have no partner yet."""

    def __init__(self, found: Proposal, source: Tensors, destination: Tensors, changes: Sequence[Change]) -> None:
        used = {*found.names, *(key for change in changes for key in change.sources)}
        made = {*found.names.values(), *(key for change in changes for key in change.results.values())}
        self.source = {key: info for key, info in source.items() if key not in used}
        self.destination = {key: info for key, info in destination.items() if key not in made}

    def take(
        self,
        change: Change,
        changes: list[Change],
        open_: list[Undecided],
        old: Sequence[str],
        new: Sequence[str],
        why: str,
    ) -> None:
        """Add a change, or what is open about it, if none of its tensors is used yet."""
        if not (self.source.keys() >= {*old} and self.destination.keys() >= {*new}):
            return
        if why:
            open_.append(Undecided(tuple(old), tuple(new), why))
        else:
            changes.append(change)
        for key in old:
            del self.source[key]
        for key in new:
            del self.destination[key]


def _stored(turned: Iterable[str], names: Iterable[str], tensors: Tensors) -> Callable[[str], bool | None]:
    """Return a function that says whether matrices like that of a key are transposed in the other model."""
    places = {place for key in turned if (place := _place(key)) and len(tensors[key].shape) == 2}
    plain = {_place(key) for key in names if len(shape := tensors[key].shape) == 2 and shape[0] != shape[1]}

    def is_turned(key: str) -> bool | None:
        place = _place(key)
        if place is None or (place in places) == (place in plain):
            return None
        return place in places

    return is_turned


def _place(key: str) -> tuple[str, ...] | None:
    found = _LIST.match(key)
    return found.groups() if found is not None else None


def _kept(verb: str, name: str, phase: int, *fields: tuple[str, object]) -> Step:
    return Step(verb, (name,), (name,), phase, fields)


def _transposes(found: Proposal, source: Tensors) -> Iterator[Change]:
    """Yield the transposes of matrices whose names correspond, and of square ones in the same layers."""
    for key, new in found.turned.items():
        yield Change((_turn(key, new, source[key]),), {key: new}, (key,), TURNED)
    matrices = {key: source[key].shape for key in found.names}
    flat = [key for key in found.turned if len(source[key].shape) == 2 and not key.endswith(f".{KERNEL}")]
    for key in square_siblings(flat, matrices):
        yield Change((_kept("transpose", key, TURN),), {key: found.names[key]}, (key,), TURNED)


def reordered(names: Mapping[str, str], orders: Mapping[str, tuple[str, int]]) -> Iterator[Change]:
    """Yield the operations ``halves`` and ``pairs`` on queries and keys; ``orders`` has the operation and the heads."""
    for key, (verb, heads) in orders.items():
        if key in names:
            yield Change((_kept(verb, key, ORDER, ("heads", heads)),), {key: names[key]}, (key,), "name")


def _turn(key: str, new: str, info: TensorInfo) -> Step:
    """Return the transpose of a matrix, or the order of dimensions of a kernel of a convolution."""
    number = len(info.shape)
    if number == 2:
        return _kept("transpose", key, TURN)
    of_kernel = key.rpartition(".")[2] == KERNEL and new.rpartition(".")[2] != KERNEL
    dims = (number - 1, number - 2, *range(number - 2)) if of_kernel else (*range(2, number), 1, 0)
    return _kept("permute", key, TURN, ("dims", dims))


def _split(fused: Fused, source: Tensors, destination: Tensors) -> Change:
    names = {free_name(key, source): key for key in fused.parts}
    sizes = tuple(destination[key].shape[fused.dim] for key in fused.parts)
    fields: tuple[tuple[str, object], ...] = (("dim", fused.dim),) if fused.dim else ()
    fields += (("sizes", sizes),) if len(set(sizes)) > 1 else ()
    turn = (_kept("transpose", fused.whole, TURN),) if fused.turned else ()
    step = Step("split", (fused.whole,), tuple(names), JOIN, fields)
    return Change((*turn, step), names, (fused.whole,), "name")


def _concat(fused: Fused, source: Tensors) -> Change:
    name = free_name(fused.whole, source)
    fields = (("dim", fused.dim),) if fused.dim else ()
    step = Step("concat", fused.parts, (name,), JOIN, fields)
    turn = (_kept("transpose", name, RETURN),) if fused.turned else ()
    return Change((step, *turn), {name: fused.whole}, fused.parts, "name")


def _stack(found: Stacked, source: Tensors) -> Change:
    stack = found.stacks[0]
    name = free_name(stack, source)
    turns = tuple(_kept("transpose", key, TURN) for key in found.parts) if found.turned else ()
    return Change((*turns, Step("stack", found.parts, (name,), STACK)), {name: stack}, found.parts, found.why)


def _unstack(found: Stacked, source: Tensors) -> Change:
    names = {free_name(key, source): key for key in found.parts}
    turns = tuple(_kept("transpose", name, RETURN) for name in names) if found.turned else ()
    step = Step("unstack", found.stacks[:1], tuple(names), UNSTACK)
    return Change((step, *turns), names, found.stacks[:1], found.why)


def _squeezed(source: Tensors, destination: Tensors) -> Iterator[Change]:
    """Yield the reshapes of 1x1 convolutions that are linear layers in the other model, and the reverse."""
    if not any(len(info.shape) > 2 and info.shape[-1] == 1 for side in (source, destination) for info in side.values()):
        return
    flat = [
        {key: TensorInfo(info.dtype, _flat(info.shape)) for key, info in side.items()} for side in (source, destination)
    ]
    for key, new in propose("", flat[0], "", flat[1]).names.items():
        if source[key].shape != (shape := destination[new].shape):
            yield Change((_kept("reshape", key, ORDER, ("shape", shape)),), {key: new}, (key,), "name")


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def _by_layer(found: Iterable[Undecided]) -> list[Undecided]:
    """Return what is open once for all layers, with ``{n}`` in place of the numbers."""
    groups: dict[Undecided, Undecided] = {}
    for one in found:
        old, new = (tuple(dict.fromkeys(map(shown, keys))) for keys in (one.first, one.second))
        group = Undecided(old, new, one.why)
        keys = (*groups[group].keys, *one.second) if group in groups else one.second
        groups[group] = Undecided(old, new, one.why, tuple(keys))
    return list(groups.values())
