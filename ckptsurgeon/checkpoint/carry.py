"""The entries of a file beside its tensors that can be written into another: plain data, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..formats.base import limits
from ..formats.pickle.numpy import Array
from ..formats.pickle.values import Group, Name, Opaque, key_text
from ..tensors.info import TensorInfo

__all__ = ["NO_NAMES", "Entry", "entries_to_carry", "names_to"]

MAX_DEPTH = 64
MAX_BITS = 2000
NO_NAMES = "the state dict hangs in a list, in an object or under a key that is no text"
TOO_MUCH = "there is more than is looked through"


@dataclass(frozen=True)
class Entry:
    """An entry beside the tensors: the names of the dicts it lies in as ``place``, and ``why`` it cannot be carried."""

    name: str
    key: str
    place: tuple[str, ...]
    value: Any
    why: str = ""


def names_to(tree: Any, keys: Sequence[Any]) -> tuple[str, ...] | None:
    """Return a path through a file as names; None where it leads through lists, objects or keys that are no text."""
    for key in keys:
        if not (isinstance(tree, dict) and type(key) is str):
            return None
        tree = tree[key]
    return tuple(keys)


def entries_to_carry(entries: Iterable[tuple[tuple[str, ...], Any, Any]]) -> Iterator[Entry]:
    """Yield (place, key, value) as entries. Those that share what they hold are looked through within one budget."""
    look = _Look()
    for number, (place, key, value) in enumerate(entries):
        if type(key) is not str:
            why = "its name is no text"
        else:
            why = look.why_not_plain(value) if number < limits.EXTRAS else TOO_MUCH
        yield Entry(".".join((*place, key_text(key))), key_text(key), place, value, why)


class _Look:
    """What may be looked through, and so written, of one file: values, and characters of text."""

    def __init__(self) -> None:
        self._values = limits.CARRIED_VALUES
        self._characters = limits.CARRIED_TEXT

    def why_not_plain(self, value: Any) -> str:
        """Return why a value cannot be carried, '' where it is numbers, text, None, or lists and dicts of them."""
        waiting = [(value, 0)]
        while waiting:
            node, depth = waiting.pop()
            self._values -= 1
            self._characters -= len(node) if isinstance(node, str) else 0
            if self._values < 0 or self._characters < 0:
                return TOO_MUCH
            why = "it nests too deeply" if depth > MAX_DEPTH else _why(node)
            if why:
                return why
            waiting.extend((child, depth + 1) for child in _children(node))
        return ""


def _why(node: Any) -> str:
    if isinstance(node, TensorInfo):
        return "it holds tensors"
    if isinstance(node, (Opaque, Name)):
        return f"it holds a {node!r:.80}"
    if isinstance(node, Array):
        return "it holds a numpy array"
    if isinstance(node, Group):
        return "it holds a set"
    if isinstance(node, int) and node.bit_length() > MAX_BITS:
        return "it holds a huge number"
    if node is None or isinstance(node, (bool, int, float, str, list, tuple, dict)):
        return ""
    return f"it holds a {type(node).__name__}"


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node
        yield from node.values()
    elif isinstance(node, (list, tuple)):
        yield from node
