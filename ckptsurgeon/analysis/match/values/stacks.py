"""Changes of matrices in stacks (of experts or layers): stacks are unstacked before, or changed as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from ..operations.steps import RETURN, STACK, UNSTACK, Change, Fields, Step, free_name
from ..proposal import Tensors
from .relations import WHY

__all__ = ["of_stacks"]

Place = tuple[str, int]
"""The key of a stack, and the index of a matrix in it."""


def of_stacks(changes: Sequence[Change], source: Tensors, destination: Tensors) -> list[Change]:
    """Return ``changes``; changes of matrices in stacks are turned into changes of the stacks.

    ``changes`` name a matrix in a stack by the key of the stack and an index, as in ``experts.w1.0``.
    """
    groups: dict[frozenset[str], list[Change]] = defaultdict(list)
    found: list[Change] = []
    for change in changes:
        places = [_place(key, destination) for key in change.results.values()]
        stacks = frozenset(place[0] for place in places if place is not None)
        if None not in places:
            groups[stacks].append(change)
        elif not stacks:
            found.append(change)
    for group in groups.values():
        found += _put_together(group, source, destination)
    used = {place for change in found for key in change.sources if (place := _place(key, source)) is not None}
    return [_lifted(change, source) or change for one in found for change in _taken_apart(one, source, used)]


def _place(name: str, tensors: Tensors) -> Place | None:
    """Return (key of the stack, index) of a matrix in a stack; None for a tensor that is not in a stack."""
    stack, _, index = name.rpartition(".")
    return None if name in tensors else (stack, int(index))


def _put_together(group: Sequence[Change], source: Tensors, destination: Tensors) -> Iterator[Change]:
    """Join changes of single matrices: yield one change that ends with stacks, or nothing if a matrix is missing."""
    names: dict[str, dict[int, str]] = defaultdict(dict)
    for change in group:
        for name, key in change.results.items():
            stack, index = _place(key, destination) or ("", 0)
            names[stack][index] = name
    if any(len(found) < destination[stack].shape[0] for stack, found in names.items()):
        return
    steps = [step for change in group for step in change.steps]
    results = {}
    for stack, found in names.items():
        name = free_name(stack, source)
        inputs = tuple(found[index] for index in sorted(found))
        if not _are_numbered(inputs):
            moved = tuple(f"{name}.{index}" for index in range(len(inputs)))
            steps += [
                Step("copy", (old,), (new,), RETURN) for old, new in zip(inputs, moved, strict=True) if old != new
            ]
            inputs = moved
        steps.append(Step("stack", inputs, (name,), STACK))
        results[name] = stack
    yield Change(tuple(steps), results, tuple(dict.fromkeys(key for one in group for key in one.sources)), WHY)


def _are_numbered(names: Sequence[str]) -> bool:
    """Return whether names differ in one number only, and this number always increases by one."""
    split = [name.split(".") for name in names]
    if len({len(parts) for parts in split}) > 1:
        return False
    varying = [values for values in zip(*split, strict=True) if len(set(values)) > 1]
    if len(varying) != 1 or not all(value.isdecimal() for value in varying[0]):
        return False
    numbers = list(map(int, varying[0]))
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _taken_apart(change: Change, source: Tensors, used: Set[Place]) -> Iterator[Change]:
    """Yield ``change``, preceded by operations that unstack each stack of the source from which it takes a matrix.

    Yields nothing if one of these stacks has a matrix that is not in ``used``, so that no change uses it.
    """
    places = [_place(key, source) for key in change.sources]
    stacks = {place[0]: source[place[0]].shape[0] for place in places if place is not None}
    if not stacks:
        yield change
    elif all((stack, index) in used for stack, number in stacks.items() for index in range(number)):
        apart = [_unstack(stack, number) for stack, number in stacks.items()]
        keys = (place[0] if place else key for place, key in zip(places, change.sources, strict=True))
        yield replace(change, steps=(*apart, *change.steps), sources=tuple(dict.fromkeys(keys)))


def _unstack(stack: str, number: int) -> Step:
    return Step("unstack", (stack,), tuple(f"{stack}.{index}" for index in range(number)), UNSTACK)


def _lifted(change: Change, source: Tensors) -> Change | None:
    """Return the change as operations on whole stacks; None if these would not change all matrices in the same way.

    A new stack gets another name if a tensor of the source has its name.
    """
    stacks = [step for step in change.steps if step.verb == "stack"]
    inner = [step for step in change.steps if step.verb not in ("stack", "unstack")]
    if not stacks or len(inner) + len(stacks) == len(change.steps):
        return None
    by_index: dict[str, list[Step]] = defaultdict(list)
    for step in inner:
        ends = {name.rpartition(".")[2] for name in (*step.inputs, *step.outputs)}
        if len(ends) > 1 or step.verb in ("halves", "pairs", "copy", "permute", "reshape"):
            return None
        by_index[ends.pop()].append(_outside(step))
    ways = {tuple(steps) for steps in by_index.values()}
    if len(ways) > 1 or (inner and len(by_index) != len(stacks[0].inputs)) or not all(map(_in_order, stacks)):
        return None
    lifted = ways.pop() if ways else ()
    new = {name for step in lifted if not step.keeps_names for name in step.outputs}
    if not new.isdisjoint(change.sources):
        return None
    names = {name: free_name(name, source) for name in new}
    results = {names.get(base := _base(step.inputs[0]), base): change.results[step.outputs[0]] for step in stacks}
    return replace(change, steps=tuple(_renamed(step, names) for step in lifted), results=results)


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    inputs, outputs = (tuple(names.get(name, name) for name in side) for side in (step.inputs, step.outputs))
    return replace(step, inputs=inputs, outputs=outputs)


def _in_order(step: Step) -> bool:
    return step.inputs == tuple(f"{_base(step.inputs[0])}.{index}" for index in range(len(step.inputs)))


def _base(name: str) -> str:
    return name.rpartition(".")[0]


def _outside(step: Step) -> Step:
    """Return the step that does to every matrix of a stack what ``step`` does to one of them."""
    inputs, outputs = (tuple(map(_base, names)) for names in (step.inputs, step.outputs))
    return Step(step.verb, inputs, outputs, step.phase, _moved(step))


def _moved(step: Step) -> Fields:
    if step.verb == "transpose":
        return (("dims", (1, 2)),)
    fields: dict[str, Any] = dict(step.fields)
    return tuple({**fields, "dim": fields.get("dim", 0) + 1}.items())
