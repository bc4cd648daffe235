"""Carries operations out on headers: what tensors there are then, and which operation made each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ...errors import FormatError, PlanError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..keys.hints import matched
from ..keys.matcher import KeyMatcher
from .operation import JOINING, Operation
from .shaping import joined, reshaped_by, split_by

__all__ = ["MadeBy", "Performed", "perform"]

Made: TypeAlias = dict[tuple[str, ...], dict[str, TensorInfo]]
"""By the keys that went into them: tensors by their names."""

TENSORS = 1_000_000
"""Tensors that a source may have after its operations: as many as are read of one."""
DEPTH = 64
"""Operations that may follow each other on one tensor."""


@dataclass(frozen=True)
class MadeBy:
    """How a tensor was made: by which operation in the end, of which keys of the source, after how many operations."""

    operation: str
    of: tuple[str, ...]
    depth: int


@dataclass
class Performed:
    """A source after its operations: its tensors, and how those were made that it did not have before.

    ``done`` are the places of the operations that found something in it, ``notes`` are what there is to say of them.
    """

    tensors: dict[str, TensorInfo]
    by: dict[str, MadeBy] = field(default_factory=dict)
    done: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)


def perform(sources: Sequence[Mapping[str, TensorInfo]], operations: Sequence[Operation]) -> list[Performed]:
    """Carry operations out in their order, each on what the one before left; on every source that has what it is for.

    Raises PatternError for an operation that is for nothing, PlanError where shapes do not allow it or two tensors
    land on one name, FormatError where values are not plain.
    """
    results = [Performed(dict(source)) for source in sources]
    for place, operation in enumerate(operations):
        matcher = KeyMatcher(operation.patterns)
        found = [matcher.hits(result.tensors) for result in results]
        keys = [key for one in results for key in one.tensors]
        notes = matched([(str(operation), pattern) for pattern in operation.patterns], keys, "source")[1]
        for result, hits in zip(results, found, strict=True):
            if any(hits):
                _perform_one(result, operation, hits)
                result.done = (*result.done, place)
                result.notes, notes = [*result.notes, *notes], []
    return results


def _perform_one(result: Performed, operation: Operation, hits: Sequence[Sequence[str]]) -> None:
    """Replace what an operation is for by what it makes of it, at the place of the first of what went into it."""
    for key in (key for keys in hits for key in keys):
        _check_operable(key, result.tensors[key], operation)
    made = _made(result.tensors, operation, hits)
    first = {inputs[0]: inputs for inputs in made}
    consumed = {key for inputs in made for key in inputs}
    after = Performed({})
    for key, info in result.tensors.items():
        if key not in consumed:
            _put(after, key, info, operation, of=key)
            if key in result.by:
                after.by[key] = result.by[key]
        elif key in first:
            by = _made_by(result, operation, first[key])
            for name, one in made[first[key]].items():
                _put(after, name, one, operation, of=by.of[0])
                after.by[name] = by
    result.tensors, result.by = after.tensors, after.by


def _made(tensors: Mapping[str, TensorInfo], operation: Operation, hits: Sequence[Sequence[str]]) -> Made:
    """Return what an operation makes, by the keys that go into it.

    What lies in one place under several names, and is treated alike, stays one.
    """
    if operation.verb in JOINING:
        return _once(joined(operation, hits, tensors), tensors)
    made: Made = {}
    number = 0
    for key in hits[0]:
        info = tensors[key]
        made[key,] = split_by(operation, key, info) if operation.rules else {key: reshaped_by(operation, key, info)}
        number += len(made[key,])
        if number > TENSORS:
            raise PlanError(f"{operation} makes over {TENSORS} tensors.")
    return _once(made, tensors)


def _once(made: Made, tensors: Mapping[str, TensorInfo]) -> Made:
    """Return what is made with ties kept: the same places give the same tensors."""
    seen: dict[tuple[Hashable, ...], list[TensorInfo]] = {}
    for inputs, outputs in made.items():
        places = tuple(tensors[key].place for key in inputs)
        if None not in places:
            same = seen.setdefault(places, list(outputs.values()))
            made[inputs] = dict(zip(outputs, same, strict=True))
    return made


def _made_by(result: Performed, operation: Operation, inputs: Sequence[str]) -> MadeBy:
    before = [result.by.get(key, MadeBy("", (key,), 0)) for key in inputs]
    depth = 1 + max(one.depth for one in before)
    if depth > DEPTH:
        raise PlanError(f"{operation}: over {DEPTH} operations follow each other on {escape(inputs[0])}.")
    return MadeBy(str(operation), tuple(dict.fromkeys(key for one in before for key in one.of)), depth)


def _put(after: Performed, key: str, info: TensorInfo, operation: Operation, *, of: str) -> None:
    if key in after.tensors:
        other = after.by[key].of[0] if key in after.by else key
        raise PlanError(
            f"{operation}: {escape(other)} and {escape(of)} both become {escape(key)}.", hint="Give one another name."
        )
    if len(after.tensors) >= TENSORS:
        raise PlanError(f"{operation} makes over {TENSORS} tensors.")
    after.tensors[key] = info


def _check_operable(key: str, info: TensorInfo, operation: Operation) -> None:
    if info.opaque:
        raise FormatError(f"{operation}: {escape(key)} cannot be read: {info.opaque}.", rule="opaque")
    dtype = DTYPES[info.dtype]
    if dtype.is_packed:
        raise PlanError(f"{operation}: {escape(key)} is {info.dtype}, which packs several numbers in a byte.")
    if operation.verb in ("scale", "add") and not dtype.is_floating:
        raise PlanError(f"{operation}: {escape(key)} is {info.dtype}; only floating tensors are scaled or added.")
