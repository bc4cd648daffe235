"""What else is in a file beside its state dict, as inert values for people and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from ..formats.base import limits
from ..formats.pickle.numpy import Array
from ..formats.pickle.values import Group, Name, Opaque, key_text
from ..tensors.info import TensorInfo
from ..util.text import count, shape_text
from .roots import parts_of

__all__ = ["Extra", "entries_beside", "extras_of"]

MAX_TEXT = 200
MAX_ITEMS = 8

Place = tuple[str, ...]
Plain = None | bool | int | float | str | list[Any]


@dataclass(frozen=True)
class Extra:
    """An entry that is no tensor of the state dict: ``value`` is set where it is small plain data."""

    key: str
    type: str
    value: Plain = None


def extras_of(
    tree: Any, keys: Sequence[Any], entries: Mapping[Any, Any], aside: Mapping[str, TensorInfo]
) -> tuple[Extra, ...]:
    """Return the entries beside the root, those among its tensors, and those set aside; many only as a number."""
    every = chain(entries_beside(tree, keys, entries), (((), *item) for item in aside.items()))
    counter = _Counter()
    told = [
        _described(".".join((*place, key_text(key))), value, counter)
        for place, key, value in islice(every, limits.EXTRAS)
    ]
    more = sum(1 for _ in every)
    return (*told, *([Extra("…", f"{more} more entries, not listed")] if more else []))


def entries_beside(tree: Any, keys: Sequence[Any], entries: Mapping[Any, Any]) -> Iterator[tuple[Place, Any, Any]]:
    """Yield (place, key, value) of what is no tensor of the state dict: along the path to it, and in it.

    A place is the names of what an entry lies in.
    """
    node, place = tree, Place()
    for taken in keys:
        child = None
        for key, value in parts_of(node):
            if type(key) is type(taken) and key == taken:
                child = value
            else:
                yield place, key, value
        node, place = child, (*place, key_text(taken))
    for key, value in entries.items():
        if not (isinstance(value, TensorInfo) and isinstance(key, str)):
            yield place, key, value


def _described(key: str, value: Any, counter: _Counter) -> Extra:
    """Return what can be said of a value without running anything."""
    if value is None or isinstance(value, (bool, int)):
        return Extra(key, type(value).__name__, value if _fits(value) else None)
    if isinstance(value, float):
        return Extra(key, "float", value if math.isfinite(value) else None)
    if isinstance(value, str):
        return Extra(key, "str", value if len(value) <= MAX_TEXT else None)
    if isinstance(value, TensorInfo):
        return Extra(key, f"tensor {value.dtype} {shape_text(value.shape)}")
    if isinstance(value, (Opaque, Name, Array)):
        return Extra(key, f"{value!r:.200}")
    if isinstance(value, (bytes, bytearray)):
        return Extra(key, count(len(value), "byte"))
    if isinstance(value, (dict, list, tuple, Group)):
        return _container(key, value, counter)
    return Extra(key, type(value).__name__)


def _fits(value: bool | int | None) -> bool:
    return value is None or -(2**63) <= value < 2**64


def _container(key: str, value: Any, counter: _Counter) -> Extra:
    kind = {Group: "set"}.get(type(value), type(value).__name__)
    tensors = counter.tensors_in(value)
    holding = f", {count(tensors, 'tensor')} in it" if tensors else ", not looked through" if tensors is None else ""
    small = isinstance(value, (list, tuple)) and len(value) <= MAX_ITEMS and all(map(_is_scalar, value))
    return Extra(key, f"{kind} of {len(value)}{holding}", list(value) if small else None)


def _is_scalar(value: Any) -> bool:
    """Whether a value can be shown inside a list: never a container, whose nesting has no end."""
    if isinstance(value, (bool, int)):
        return _fits(value)
    return (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, str) and len(value) <= MAX_TEXT)


class _Counter:
    """Counts the tensors in nests of containers, until it has seen as many values as one file may cost."""

    def __init__(self) -> None:
        self._left = limits.COUNTED

    def tensors_in(self, value: Any) -> int | None:
        """Return how many tensors a nest holds, each container once; None where that would cost too much."""
        waiting, seen, tensors = [value], set[int](), 0
        while waiting:
            node = waiting.pop()
            if isinstance(node, TensorInfo):
                tensors += 1
            elif isinstance(node, (dict, list, tuple)) and node and id(node) not in seen:
                seen.add(id(node))
                self._left -= len(node)
                if self._left < 0:
                    return None
                waiting.extend(node.values() if isinstance(node, dict) else node)
        return tensors
