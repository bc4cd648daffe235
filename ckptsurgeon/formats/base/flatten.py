"""Joins the keys of nested dicts and lists that contain tensors: ``{"a": {"b": tensor}}`` becomes ``a.b``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import FormatError, UnsafeError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..pickle.values import key_text
from . import limits

__all__ = ["flattened", "holds_tensors", "keys_with_tensors", "named_once"]


class _Allowed:
    """Limits how many values are visited: a small pickle that repeats a container can describe a huge tree."""

    def __init__(self) -> None:
        self._left = limits.TREE_NODES

    def take(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > limits.TREE_DEPTH:
            raise UnsafeError(
                f"the nested dicts and lists have over {limits.TREE_NODES:,} values, or over {limits.TREE_DEPTH} "
                "levels.",
                rule="tree size",
            )


def holds_tensors(tree: Any) -> bool:
    """Return whether nested dicts and lists contain a tensor; raises UnsafeError if there are too many values."""
    allowed, seen = _Allowed(), set[int]()
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, TensorInfo):
            return True
        if isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            allowed.take(depth)
            seen.add(id(node))
            waiting.extend((child, depth + 1) for child in (node.values() if isinstance(node, dict) else node))
    return False


def keys_with_tensors(tree: Mapping[Any, Any]) -> list[Any]:
    """Return the keys of the dicts and lists in ``tree`` that contain a tensor, directly or in nested ones.

    Each dict or list is visited once, also if it is in several others.
    """
    around: dict[int, list[int]] = {}
    seen, found = set[int](), set[int]()
    waiting, holding = [*tree.values()], list[int]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, (dict, list, tuple)) or id(node) in seen:
            continue
        seen.add(id(node))
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, TensorInfo):
                holding.append(id(node))
            elif isinstance(child, (dict, list, tuple)):
                around.setdefault(id(child), []).append(id(node))
                waiting.append(child)
    while holding:
        node = holding.pop()
        if node not in found:
            found.add(node)
            holding += around.get(node, ())
    return [key for key, value in tree.items() if id(value) in found]


def flattened(tree: Any) -> dict[str, Any]:
    """Return {dotted key: value} for nested dicts and lists; containers without tensors are kept whole, as values.

    Raises FormatError for a key that occurs twice, UnsafeError if there are too many values or too long keys.
    """
    return named_once(_leaves(tree, "", 0, _Allowed(), {}))


def named_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return (key, value) pairs as a dict; checks that each key is short enough and occurs once.

    Raises FormatError for a key that occurs twice, UnsafeError if the keys are too long.
    """
    found: dict[str, Any] = {}
    characters = 0
    for key, value in pairs:
        characters += len(key)
        if len(key) > limits.KEY_CHARACTERS or characters > limits.PATH_CHARACTERS:
            raise UnsafeError("a key is too long, or all keys together are too long.", rule="key length")
        if key in found:
            raise FormatError(f"two values have the same dotted key, {escape(key)}.", rule="duplicate key")
        found[key] = value
    return found


def _leaves(
    tree: Any, prefix: str, depth: int, allowed: _Allowed, holding: dict[int, bool]
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each value in ``tree``; containers without tensors are yielded whole.

    ``prefix`` is put in front of each key. ``depth`` is the number of containers around ``tree``. ``holding`` is
    {``id`` of a container: whether it contains tensors} for the containers seen so far.
    """
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        allowed.take(depth)
        nested = isinstance(value, (dict, list, tuple))
        if nested and id(value) not in holding:
            holding[id(value)] = holds_tensors(value)
        if nested and holding[id(value)]:
            yield from _leaves(value, f"{prefix}{key_text(name)}.", depth + 1, allowed, holding)
        else:
            yield f"{prefix}{key_text(name)}", value
