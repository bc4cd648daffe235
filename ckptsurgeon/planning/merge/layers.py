"""Finds the numbered modules that are a model's layers, and the depth of each key in them. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import PlanError
from ...util.text import count, escape, listing, number_in

if TYPE_CHECKING:
    from ..keys.pattern import KeyPattern

__all__ = [
    "INPUT",
    "LayerDepths",
    "LayerList",
    "all_lists",
    "depth_in",
    "layer_list",
    "layer_lists",
    "layers_of",
    "lists_with_gaps",
    "numbered_lists",
    "position",
]


INPUT = re.compile(r"(^|[._])(embed(?!_out)\w*|wte|wpe|tok_embeddings|word_embeddings|position_embeddings)([._]|$)")
"""Matches the names of modules before the first layer."""


@dataclass(frozen=True)
class LayerList:
    """A list of modules with one prefix, numbered from 0: ``model.layers.0`` to ``model.layers.31``."""

    prefix: str
    count: int

    def split(self, key: str) -> tuple[int, str] | None:
        """Return the number of the layer that contains a key, and the rest of the key; None for other keys."""
        head = f"{self.prefix}." if self.prefix else ""
        number, _, rest = key[len(head) :].partition(".") if key.startswith(head) else ("", "", "")
        layer = number_in(number)
        return None if layer is None else (layer, rest)

    def key(self, number: int, rest: str) -> str:
        """Return the key of a layer's tensor, the inverse of ``split``."""
        return ".".join(part for part in (self.prefix, str(number), rest) if part)


def numbered_lists(keys: Iterable[str]) -> list[LayerList]:
    """Return every list of modules that are numbered from 0 without gaps, in the order of the keys."""
    return all_lists(keys)[0]


def lists_with_gaps(keys: Iterable[str]) -> Mapping[str, Set[int]]:
    """Return {prefix: numbers that occur} for the lists of modules whose numbers have gaps."""
    return all_lists(keys)[1]


def all_lists(keys: Iterable[str]) -> tuple[list[LayerList], Mapping[str, Set[int]]]:
    """Return the results of ``numbered_lists`` and ``lists_with_gaps`` together."""
    found = _numbers(tuple(keys))
    gaps = {prefix: numbers for prefix, numbers in found.items() if max(numbers) + 1 != len(numbers)}
    return [LayerList(prefix, len(numbers)) for prefix, numbers in found.items() if prefix not in gaps], gaps


@lru_cache(2)  # the checks of one model call this several times
def _numbers(keys: Sequence[str]) -> Mapping[str, Set[int]]:
    """Return {prefix: numbers that occur} of all lists of modules, the outermost list of the first key first."""
    found: dict[str, set[int]] = {}
    new: list[tuple[str, int]] = []
    seen = {""}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        inner = module
        while inner not in seen:  # ends at once for most keys: another key is in the same module
            seen.add(inner)
            prefix, _, segment = inner.rpartition(".")
            if segment.isdigit() and (number := number_in(segment)) is not None:
                if prefix in found:
                    found[prefix].add(number)
                else:
                    new.append((prefix, number))
            inner = prefix
        while new:
            prefix, number = new.pop()
            found.setdefault(prefix, set()).add(number)
        if leaf.isdigit() and (index := number_in(leaf)) is not None:
            found.setdefault(module, set()).add(index)
    return found


def layer_lists(keys: Iterable[str], counts: Collection[int]) -> list[LayerList]:
    """Return the lists that may be a model's layers: those with as many modules as its configuration has layers.

    ``counts`` are the numbers of layers in the configuration. If no list has such a length, or ``counts`` is empty, all
    lists are returned. A list inside a layer of another list is never returned.
    """
    lists = numbered_lists(keys)
    return _outermost([one for one in lists if one.count in counts]) or _outermost(lists)


def _outermost(lists: Sequence[LayerList]) -> list[LayerList]:
    return [one for one in lists if not any(other.split(one.prefix) for other in lists if other is not one)]


def layer_list(keys: Sequence[str], counts: Collection[int], *, name: str, pattern: KeyPattern | None) -> LayerList:
    """Return the list of modules that are a model's layers; with ``pattern``, the list whose prefix it matches.

    ``counts`` are the numbers of layers in the model's configuration, ``name`` is the model's name in messages. Raises
    PatternError for a pattern that matches no list; PlanError if several lists are possible, or none is.
    """
    if pattern is not None:
        lists = _outermost([one for one in numbered_lists(keys) if pattern.matches(one.prefix)])
        if not lists:
            from ..keys.pattern_hints import unmatched  # many modules, which most callers do not need

            raise unmatched(f"layers: {pattern.text}", pattern, [one.prefix for one in numbered_lists(keys)], "module")
    else:
        lists = layer_lists(keys, counts)
    if len(lists) == 1:
        return lists[0]
    sizes = f" with {' or '.join(map(str, sorted(counts)))} layers, the number in its config.json" if counts else ""
    if not lists:
        raise PlanError(
            f"{escape(name)} has no list of layers{sizes}.",
            hint="Give the prefix of the model's layers, for example: layers: model.layers",
        )
    named = listing([f"{one.prefix} ({one.count})" for one in lists])
    raise PlanError(
        f"{escape(name)} has {count(len(lists), 'list')} of layers: {named}.",
        hint=f"Choose one list, for example: layers: {escape(lists[0].prefix)}",
    )


def position(number: int, length: int) -> float:
    """Return the relative position of a layer: 0 for the first, 1 for the last; 1 for a single layer."""
    return number / (length - 1) if length > 1 else 1.0


def depth_in(lists: Sequence[LayerList], key: str) -> float:
    """Return the relative position of a key's layer in the list that contains it, 0 for a key outside all lists."""
    for one in lists:
        found = one.split(key)
        if found is not None and found[0] < one.count:
            return position(found[0], one.count)
    return 0.0


def layers_of(one: LayerList, keys: Iterable[str]) -> Mapping[int, list[str]]:
    """Return {number of a layer: its keys without the layer's prefix, such as ``mlp.weight``}."""
    return _layers_of(one, tuple(keys))


@lru_cache(2)
def _layers_of(one: LayerList, keys: Sequence[str]) -> Mapping[int, list[str]]:
    head = f"{one.prefix}." if one.prefix else ""
    found: dict[int, list[str]] = {}
    for key in keys:  # the same as ``split``, but faster
        if key.startswith(head):
            segment, _, rest = key[len(head) :].partition(".")
            if (number := number_in(segment)) is not None:
                found.setdefault(number, []).append(rest)
    return found


class LayerDepths:
    """The depth of each key: 0 in the first layer, 1 in the last.

    The first number in a key is the number of its layer; keys with the same text before the number belong to one list
    of layers. A key without a number has the depth 0 if it belongs to an input embedding, else 1.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for key in keys:
            kind, layer = _layer(key)
            if layer is not None:
                self._last[kind] = max(self._last.get(kind, 0), layer)

    def of(self, key: str) -> float:
        """Return the relative position of a key's layer, from 0 (the first) to 1 (the last)."""
        kind, layer = _layer(key)
        if layer is None:
            return 0.0 if INPUT.search(key) else 1.0
        return layer / self._last[kind] if self._last.get(kind) else 0.0


def _layer(key: str) -> tuple[str, int | None]:
    segments = key.split(".")
    for place, segment in enumerate(segments):
        if (number := number_in(segment)) is not None:
            return ".".join(segments[:place]), number
    return "", None
