"""Finds operations by the fingerprints of rows and columns: split, concat, transpose, halves, pairs, take, slice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..operations.steps import JOIN, ORDER, REORDER, RETURN, TURN, Change, Step, free_name, in_place
from .find_lines import COLUMNS, Found, Matrix, Pool
from .structure import Region, operations_for_order, region_of

__all__ = ["WHY", "relations"]

WHY = "value"
Positions = npt.NDArray[np.int64]


def relations(source: Sequence[Matrix], destination: Sequence[Matrix], taken: Mapping[str, object]) -> Iterator[Change]:
    """Yield the changes that make matrices of the destination from matrices of the source.

    No result gets a name in ``taken``, the keys of the source.
    """
    done: set[str] = set()
    inside = [found for found in map(Pool(source).find, destination) if found is not None]
    for whole, parts in _by_whole(inside):
        change = _split(whole, parts, taken)
        if change is not None:
            done |= {whole.name, *(part.matrix.name for part in parts)}
            yield change
    left = [one for one in destination if one.name not in done]
    of_source = [one for one in source if one.name not in done]
    pieces = [found for found in map(Pool(left).find, of_source) if found is not None]
    for whole, parts in _by_whole(pieces):
        change = _concat(whole, parts, taken)
        if change is not None:
            yield change


def _by_whole(found: Iterable[Found]) -> Iterator[tuple[Matrix, list[Found]]]:
    groups: dict[tuple[str, int], list[Found]] = defaultdict(list)
    for one in found:
        groups[one.inside.name, one.inner].append(one)
    yield from ((parts[0].inside, parts) for parts in groups.values())


class _Forms:
    """Decides which tensors a change must transpose, and along which dimension, ``dim``, it joins or splits them.

    If the lines are columns in the whole tensor and in all parts, nothing is transposed, and ``dim`` is 1. Otherwise
    ``dim`` is 0, and each tensor whose lines are columns is transposed.
    """

    def __init__(self, parts: Sequence[Found]) -> None:
        sideways = parts[0].inner == COLUMNS and all(part.axis == COLUMNS for part in parts)
        self.dim = 1 if sideways else 0
        self.whole_turned = not sideways and parts[0].inner == COLUMNS
        self.part_turned = [not sideways and part.axis == COLUMNS for part in parts]

    @property
    def fields(self) -> tuple[tuple[str, Any], ...]:
        return (("dim", self.dim),) if self.dim else ()


def _ordering(name: str, order: Positions, phase: int, dim: int) -> list[Step] | None:
    """Return the steps that put the rows of a tensor into ``order``; None if no operation can."""
    found = operations_for_order(order, dim)
    return None if found is None else [in_place(verb, name, phase, fields) for verb, fields in found]


def _rank(positions: Positions) -> Positions:
    """Return the rank of each position: the number of smaller positions."""
    return np.argsort(np.argsort(positions))


def _split(whole: Matrix, parts: Sequence[Found], taken: Mapping[str, object]) -> Change | None:
    """Return the change that makes ``parts`` from the source tensor ``whole``; None if no operations do."""
    forms, number = _Forms(parts), len(whole.along(parts[0].inner))
    steps = [in_place("transpose", whole.name, TURN)] if forms.whole_turned else []
    if len(parts) == 1:
        return _one(whole, parts[0], forms, steps)
    if sum(len(part.positions) for part in parts) != number:
        return None
    order = sorted(range(len(parts)), key=lambda at: int(parts[at].positions.min()))
    regions = _regions([parts[at] for at in order], number)
    names = [free_name(parts[at].matrix.name, taken) for at in order]
    if regions is None:
        again = _ordering(whole.name, np.concatenate([parts[at].positions for at in order]), ORDER, forms.dim)
        if again is None:
            return None
        steps += again
    sizes = tuple(region.size for region in regions or [Region(1, 0, len(parts[at].positions)) for at in order])
    fields = forms.fields + ((("sizes", sizes),) if len(set(sizes)) > 1 else ())
    fields += (("groups", regions[0].groups),) if regions and regions[0].groups > 1 else ()
    steps.append(Step("split", (whole.name,), tuple(names), JOIN, fields))
    for name, at in zip(names, order, strict=True):
        if regions is not None:
            inner = _ordering(name, _rank(parts[at].positions), REORDER, forms.dim)
            if inner is None:
                return None
            steps += inner
        steps += [in_place("transpose", name, RETURN)] if forms.part_turned[at] else []
    results = {name: parts[at].matrix.name for name, at in zip(names, order, strict=True)}
    return Change(tuple(steps), results, (whole.name,), WHY)


def _one(whole: Matrix, part: Found, forms: _Forms, steps: list[Step]) -> Change | None:
    """Return the change that makes one tensor from consecutive rows or columns of ``whole``, or from all of them.

    Returns None if the rows or columns of the tensor are not consecutive, or no operation gives them this order.
    """
    number = len(whole.along(part.inner))
    region = region_of(part.positions, number)
    if region is None or region.groups > 1:
        return None
    if region.size < number:
        fields = (("begin", region.begin),) if region.begin else ()
        steps.append(in_place("slice", whole.name, JOIN, (*fields, ("end", region.begin + region.size), *forms.fields)))
    inner = _ordering(whole.name, _rank(part.positions), REORDER, forms.dim)
    if inner is None:
        return None
    steps += inner
    steps += [in_place("transpose", whole.name, RETURN)] if forms.part_turned[0] else []
    return Change(_cancelled(steps), {whole.name: part.matrix.name}, (whole.name,), WHY)


def _cancelled(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps, or no steps if they are only two transposes, which cancel each other."""
    if len(steps) == 2 and all(step.verb == "transpose" for step in steps):
        return ()
    return tuple(steps)


def _regions(parts: Sequence[Found], number: int) -> list[Region] | None:
    """Return the region of each part; None if the regions, in this order, do not follow each other."""
    found = [region_of(part.positions, number) for part in parts]
    regions = [region for region in found if region is not None]
    if len(regions) < len(parts) or len({region.groups for region in regions}) > 1:
        return None
    begins = np.cumsum([0, *(region.size for region in regions)])
    return regions if [region.begin for region in regions] == begins[:-1].tolist() else None


def _concat(whole: Matrix, parts: Sequence[Found], taken: Mapping[str, object]) -> Change | None:
    """Return the change that makes the destination tensor ``whole`` from ``parts``; None if no operations do.

    No new tensor gets a name in ``taken``, the keys of the source.
    """
    forms, number = _Forms(parts), len(whole.along(parts[0].inner))
    if len(parts) < 2 or sum(len(part.positions) for part in parts) != number:
        return None
    at = sorted(range(len(parts)), key=lambda one: int(parts[one].positions.min()))
    steps = [in_place("transpose", parts[one].matrix.name, TURN) for one in at if forms.part_turned[one]]
    regions = _regions([parts[one] for one in at], number)
    name = free_name(whole.name, taken)
    inputs = tuple(parts[one].matrix.name for one in at)
    groups = regions[0].groups if regions else 1
    fields = forms.fields + ((("groups", groups),) if groups > 1 else ())
    joined = Step("concat", inputs, (name,), JOIN, fields)
    if regions is not None:
        inner = [_ordering(parts[one].matrix.name, np.argsort(parts[one].positions), ORDER, forms.dim) for one in at]
        if any(one is None for one in inner):
            return None
        steps += [step for one in inner if one is not None for step in one]
        steps.append(joined)
    else:
        placed = np.concatenate([parts[one].positions for one in at])
        again = _ordering(name, np.argsort(placed), REORDER, forms.dim)
        if again is None or len(np.unique(placed)) != number:
            return None
        steps += [joined, *again]
    steps += [in_place("transpose", name, RETURN)] if forms.whole_turned else []
    return Change(tuple(steps), {name: whole.name}, inputs, WHY)
