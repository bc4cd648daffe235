"""Lists the entries of a file other than the tensors of its state dict, to show them or copy them into an output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from ..formats.base import limits
from ..formats.pickle.numpy import Array
from ..formats.pickle.values import GlobalName, OpaqueResult, PickledSet, key_text
from ..tensors.info import TensorInfo
from ..util.text import count, shape_text
from .find_state_dict import parts_of

__all__ = [
    "NO_NAMES",
    "Extra",
    "ExtraEntry",
    "entries_beside",
    "entries_to_carry",
    "extras_of",
    "names_to",
    "why_not_plain",
]

MAX_TEXT = 200
MAX_ITEMS = 8
"""The most characters of a string, and the most items of a list, whose value is shown."""

Place = tuple[str, ...]
"""The names of the dicts that contain an entry, outermost first."""
Plain = None | bool | int | float | str | list[Any]
"""A value that can be shown."""


@dataclass(frozen=True)
class Extra:
    """An entry of a file that is not a tensor of the state dict; ``value`` is None unless it is small plain data."""

    key: str
    type: str
    value: Plain = None


def extras_of(
    tree: Any, keys: Sequence[Any], entries: Mapping[Any, Any], aside: Mapping[str, TensorInfo]
) -> tuple[Extra, ...]:
    """Return the entries of a file other than the tensors of its state dict; above a limit, they are only counted.

    ``tree`` is the content of the file, ``keys`` is the path of the state dict in ``tree``, and ``entries`` are all
    entries of the state dict. ``aside`` has tensors that do not belong to the model, such as the counter of an averaged
    model.
    """
    every = chain(entries_beside(tree, keys, entries), (((), *item) for item in aside.items()))
    counter = _TensorCounter()
    told = [
        _described(".".join((*place, key_text(key))), value, counter)
        for place, key, value in islice(every, limits.EXTRAS)
    ]
    more = sum(1 for _ in every)
    return (*told, *([Extra("…", f"{count(more, 'more entry', 'more entries')}, not listed")] if more else []))


def entries_beside(tree: Any, keys: Sequence[Any], entries: Mapping[Any, Any]) -> Iterator[tuple[Place, Any, Any]]:
    """Yield (place, key, value) of each entry of the file that is not a tensor of the state dict.

    ``tree`` is the content of the file, ``keys`` is the path of the state dict in ``tree``, and ``entries`` are all
    entries of the state dict. ``place`` has the names of the dicts that contain the yielded entry, outermost first.
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


def _described(key: str, value: Any, counter: _TensorCounter) -> Extra:
    """Return an Extra for an entry, with the value if it is small plain data; no code in the file is run."""
    if value is None or isinstance(value, (bool, int)):
        return Extra(key, type(value).__name__, value if _fits(value) else None)
    if isinstance(value, float):
        return Extra(key, "float", value if math.isfinite(value) else None)
    if isinstance(value, str):
        return Extra(key, "str", value if len(value) <= MAX_TEXT else None)
    if isinstance(value, TensorInfo):
        return Extra(key, f"tensor {value.dtype} {shape_text(value.shape)}")
    if isinstance(value, (OpaqueResult, GlobalName, Array)):
        return Extra(key, f"{value!r:.200}")
    if isinstance(value, (bytes, bytearray)):
        return Extra(key, count(len(value), "byte"))
    if isinstance(value, (dict, list, tuple, PickledSet)):
        return _container(key, value, counter)
    return Extra(key, type(value).__name__)


def _fits(value: bool | int | None) -> bool:
    return value is None or -(2**63) <= value < 2**64


def _container(key: str, value: Any, counter: _TensorCounter) -> Extra:
    kind = {PickledSet: "set"}.get(type(value), type(value).__name__)
    tensors = counter.tensors_in(value)
    holding = f", {count(tensors, 'tensor')} in it" if tensors else ", not searched" if tensors is None else ""
    small = isinstance(value, (list, tuple)) and len(value) <= MAX_ITEMS and all(map(_is_scalar, value))
    return Extra(key, f"{kind} of {len(value)}{holding}", list(value) if small else None)


def _is_scalar(value: Any) -> bool:
    """Return whether a value is short enough to be shown as an item of a list: a finite number or a short string."""
    if isinstance(value, (bool, int)):
        return _fits(value)
    return (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, str) and len(value) <= MAX_TEXT)


class _TensorCounter:
    """Counts the tensors in nested containers of one file, up to a limit of visited values for the whole file."""

    def __init__(self) -> None:
        self._left = limits.COUNTED

    def tensors_in(self, value: Any) -> int | None:
        """Return the number of tensors in a value and in the containers inside it; None if the limit is reached.

        A container that occurs several times is counted once.
        """
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


# The entries of a file other than its tensors that can be written into another file: only plain data.

MAX_DEPTH = 64
MAX_BITS = 2000
"""The deepest nesting of an entry, and the most bits of an integer, that can be written into another file."""
NO_NAMES = "the state dict is inside a list or an object, or its key is not a string"
TOO_MUCH = "the file has too many entries to search"


@dataclass(frozen=True)
class ExtraEntry:
    """An entry of a file other than its tensors; ``name`` is its dotted path, ``key`` the last part of the path.

    ``place`` has the names of the dicts that contain the entry. ``why`` is the reason why the entry cannot be written
    into another file, or ''.
    """

    name: str
    key: str
    place: tuple[str, ...]
    value: Any
    why: str = ""


def names_to(tree: Any, keys: Sequence[Any]) -> tuple[str, ...] | None:
    """Return the path ``keys`` as strings; None if a list, an object or a key that is not a string is on this path."""
    for key in keys:
        if not (isinstance(tree, dict) and type(key) is str):
            return None
        tree = tree[key]
    return tuple(keys)


def entries_to_carry(entries: Iterable[tuple[tuple[str, ...], Any, Any]]) -> Iterator[ExtraEntry]:
    """Yield an ExtraEntry for each (place, key, value); ``why`` says why it cannot be written into another file.

    Several entries may contain the same value, which is then searched several times. To limit the time, the number of
    searched values is limited for all entries together.
    """
    look = _SearchLimit()
    for number, (place, key, value) in enumerate(entries):
        if type(key) is not str:
            why = "its name is not a string"
        else:
            why = look.why_not_plain(value) if number < limits.EXTRAS else TOO_MUCH
        yield ExtraEntry(".".join((*place, key_text(key))), key_text(key), place, value, why)


def why_not_plain(value: Any) -> str:
    """Return the reason why a value cannot be written into another file; '' if it can be written."""
    return _SearchLimit().why_not_plain(value)


class _SearchLimit:
    """Counts how many values, and characters of text, of one file may still be searched and written into an output."""

    def __init__(self) -> None:
        self._values = limits.CARRIED_VALUES
        self._characters = limits.CARRIED_TEXT

    def why_not_plain(self, value: Any) -> str:
        """Return the reason why a value cannot be written into another file; '' if it can.

        Only numbers, strings, None, and lists and dicts of these can be written.
        """
        waiting = [(value, 0)]
        while waiting:
            node, depth = waiting.pop()
            self._values -= 1
            self._characters -= len(node) if isinstance(node, str) else 0
            if self._values < 0 or self._characters < 0:
                return TOO_MUCH
            why = "it is nested too deeply" if depth > MAX_DEPTH else _why(node)
            if why:
                return why
            waiting.extend((child, depth + 1) for child in _children(node))
        return ""


def _why(node: Any) -> str:
    if isinstance(node, TensorInfo):
        return "it contains tensors"
    if isinstance(node, (OpaqueResult, GlobalName)):
        return f"it contains a {node!r:.80}"
    if isinstance(node, Array):
        return "it contains a numpy array"
    if isinstance(node, PickledSet):
        return "it contains a set"
    if isinstance(node, int) and node.bit_length() > MAX_BITS:
        return "it contains a huge number"
    if node is None or isinstance(node, (bool, int, float, str, list, tuple, dict)):
        return ""
    return f"it contains a {type(node).__name__}"


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node
        yield from node.values()
    elif isinstance(node, (list, tuple)):
        yield from node
