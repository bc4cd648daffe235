"""Proposes operations by names and shapes: fused projections, stacks, transposed matrices, 1x1 convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ....planning.keys.transposed import square_siblings
from ....tensors.info import TensorInfo
from ....util.text import count
from ..module_groups import KERNEL
from ..proposal import Proposal, Tensors, Undecided
from .fused import Fused, find_fused, not_compared
from .other_shapes import squeezed, turned_in_some_layers
from .places import shown
from .stacked import Stacked, find_stacked, stacks_not_compared
from .steps import JOIN, ORDER, RETURN, STACK, TURN, UNSTACK, Change, Step, free_name, in_place

__all__ = ["HeaderChanges", "header_changes", "reordered"]

_LIST = re.compile(r"^((?:[^.]*\.)*?)\d+\..*?([^.]*)$")
"""Matches a key in a list of layers; its groups are the text before the first number, and the last segment."""
TURNED = "transposed"
_BEYOND = (
    "not compared with the other model, because too many tensors have the same layer numbers: {} that may be fused "
    "or stacked"
)


@dataclass(frozen=True)
class HeaderChanges:
    """The operations that follow from names and shapes: complete operations, incomplete operations, and notes."""

    changes: list[Change]
    undecided: list[Undecided]
    notes: list[str]


def header_changes(found: Proposal, source: Tensors, destination: Tensors) -> HeaderChanges:
    """Return the complete and the incomplete operations that follow from names and shapes, and notes.

    ``found`` has the tensors that are only renamed; the operations do not use them.
    """
    left = _Left(found, source, destination, list(_transposes(found, source)))
    kinds = found.turned, {new: old for old, new in found.turned.items()}
    names = found.names, {new: old for old, new in found.names.items()}
    turned = [_stored(*pair) for pair in ((kinds[0], names[0], source), (kinds[1], names[1], destination))]
    beyond = not_compared(left.source, left.destination)
    for fused in list(find_fused(left.source, left.destination, turned[0])):
        left.take(_split(fused, source, destination))
    beyond += not_compared(left.destination, left.source)
    for fused in list(find_fused(left.destination, left.source, turned[1])):
        left.take(_concat(fused, source))
    beyond += stacks_not_compared(left.destination, left.source)
    for stack in list(find_stacked(left.destination, left.source, (destination, source))):
        left.take(_stack(stack, source))
    beyond += stacks_not_compared(left.source, left.destination)
    for stack in list(find_stacked(left.source, left.destination, (source, destination))):
        left.take(_unstack(stack, source))
    for changes in (squeezed, turned_in_some_layers):
        for change in list(changes(left.source, left.destination)):
            left.take(change)
    notes = [_BEYOND.format(count(beyond, "tensor"))] if beyond else []
    return HeaderChanges(left.changes, _by_layer(left.undecided), notes)


class _Left:
    """The tensors of both models that have no partner yet, and the operations that were found.

    ``changes`` are the operations that are already known.
    """

    def __init__(self, found: Proposal, source: Tensors, destination: Tensors, changes: list[Change]) -> None:
        self.changes, self.undecided = changes, list[Undecided]()
        used = {*found.names, *(key for change in changes for key in change.sources)}
        made = {*found.names.values(), *(key for change in changes for key in change.results.values())}
        self.source = {key: info for key, info in source.items() if key not in used}
        self.destination = {key: info for key, info in destination.items() if key not in made}

    def take(self, found: Change | Undecided) -> None:
        """Add a change or an incomplete operation, if none of its tensors is used yet."""
        if isinstance(found, Change):
            old, new = found.sources, tuple(found.results.values())
        else:
            old, new = found.first, found.second
        if not (self.source.keys() >= {*old} and self.destination.keys() >= {*new}):
            return
        if isinstance(found, Change):
            self.changes.append(found)
        else:
            self.undecided.append(found)
        for key in old:
            del self.source[key]
        for key in new:
            del self.destination[key]


def _stored(turned: Iterable[str], names: Iterable[str], tensors: Tensors) -> Callable[[str], bool | None]:
    """Return a function that takes the key of a matrix and returns whether similar matrices are stored transposed.

    ``turned`` are the keys of matrices that are known to be transposed, ``names`` the keys of matrices that are known
    not to be. Matrices are similar if they are in the same list of layers and their keys have the same last segment.
    The function returns None if there are no similar matrices in ``turned`` and ``names``, or if they contradict each
    other.
    """
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


def _transposes(found: Proposal, source: Tensors) -> Iterator[Change]:
    """Yield the transposes of matrices whose names correspond, and of square matrices in the same layers."""
    for key, new in found.turned.items():
        yield Change((_turn(key, new, source[key]),), {key: new}, (key,), TURNED)
    matrices = {key: source[key].shape for key in found.names}
    flat = [key for key in found.turned if len(source[key].shape) == 2 and not key.endswith(f".{KERNEL}")]
    for key in square_siblings(flat, matrices):
        yield Change((in_place("transpose", key, TURN),), {key: found.names[key]}, (key,), TURNED)


def reordered(names: Mapping[str, str], orders: Mapping[str, tuple[str, int]]) -> Iterator[Change]:
    """Yield changes that reorder rows of queries and keys; ``orders`` maps a key to ("halves" or "pairs", heads)."""
    for key, (verb, heads) in orders.items():
        if key in names:
            yield Change((in_place(verb, key, ORDER, (("heads", heads),)),), {key: names[key]}, (key,), "name")


def _turn(key: str, new: str, info: TensorInfo) -> Step:
    """Return the step that transposes a matrix, or that permutes the dimensions of a convolution's kernel."""
    number = len(info.shape)
    if number == 2:
        return in_place("transpose", key, TURN)
    of_kernel = key.rpartition(".")[2] == KERNEL and new.rpartition(".")[2] != KERNEL
    dims = (number - 1, number - 2, *range(number - 2)) if of_kernel else (*range(2, number), 1, 0)
    return in_place("permute", key, TURN, (("dims", dims),))


def _split(fused: Fused, source: Tensors, destination: Tensors) -> Change | Undecided:
    if fused.unknown:
        return Undecided((fused.whole,), fused.parts, fused.unknown)
    names = {free_name(key, source): key for key in fused.parts}
    sizes = tuple(destination[key].shape[fused.dim] for key in fused.parts)
    fields: tuple[tuple[str, object], ...] = (("dim", fused.dim),) if fused.dim else ()
    fields += (("sizes", sizes),) if len(set(sizes)) > 1 else ()
    turn = (in_place("transpose", fused.whole, TURN),) if fused.turned else ()
    step = Step("split", (fused.whole,), tuple(names), JOIN, fields)
    return Change((*turn, step), names, (fused.whole,), "name")


def _concat(fused: Fused, source: Tensors) -> Change | Undecided:
    if fused.unknown:
        return Undecided(fused.parts, (fused.whole,), fused.unknown)
    name = free_name(fused.whole, source)
    fields = (("dim", fused.dim),) if fused.dim else ()
    step = Step("concat", fused.parts, (name,), JOIN, fields)
    turn = (in_place("transpose", name, RETURN),) if fused.turned else ()
    return Change((step, *turn), {name: fused.whole}, fused.parts, "name")


def _stack(found: Stacked, source: Tensors) -> Change | Undecided:
    if found.unknown:
        return Undecided(found.parts, found.stacks, found.unknown)
    stack = found.stacks[0]
    name = free_name(stack, source)
    turns = tuple(in_place("transpose", key, TURN) for key in found.parts) if found.turned else ()
    return Change((*turns, Step("stack", found.parts, (name,), STACK)), {name: stack}, found.parts, found.why)


def _unstack(found: Stacked, source: Tensors) -> Change | Undecided:
    if found.unknown:
        return Undecided(found.stacks, found.parts, found.unknown)
    names = {free_name(key, source): key for key in found.parts}
    turns = tuple(in_place("transpose", name, RETURN) for name in names) if found.turned else ()
    step = Step("unstack", found.stacks[:1], tuple(names), UNSTACK)
    return Change((step, *turns), names, found.stacks[:1], found.why)


def _by_layer(found: Iterable[Undecided]) -> list[Undecided]:
    """Return one incomplete operation for all layers in place of one per layer, with ``{n}`` for the number."""
    groups: dict[Undecided, Undecided] = {}
    for one in found:
        old, new = (tuple(dict.fromkeys(map(shown, keys))) for keys in (one.first, one.second))
        group = Undecided(old, new, one.why)
        keys = (*groups[group].keys, *one.second) if group in groups else one.second
        groups[group] = Undecided(old, new, one.why, tuple(keys))
    return list(groups.values())
