"""The entries of a file beside its tensors that can be written into another: plain data, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..formats import Array, Group, Name, Opaque, key_text, limits
from ..tensors import TensorInfo

__all__ = ["Entry", "entries_to_carry"]

MAX_DEPTH = 64
MAX_BITS = 2000
TOO_MUCH = "there is more than is looked through"


@dataclass(frozen=True)
class Entry:
    """An entry beside the tensors: ``inside`` the state dict or at the top level, and ``why`` it cannot be carried."""

    name: str
    key: str
    inside: bool
    value: Any
    why: str = ""


def entries_to_carry(entries: Iterable[tuple[str, Any, Any]]) -> Iterator[Entry]:
    """Yield (prefix, key, value) as entries. Those that share what they hold are looked through within one budget."""
    look = _Look()
    for number, (prefix, key, value) in enumerate(entries):
        if type(key) is not str:
            why = "its name is no text"
        else:
            why = look.why_not_plain(value) if number < limits.EXTRAS else TOO_MUCH
        yield Entry(f"{prefix}{key_text(key)}", key_text(key), bool(prefix), value, why)


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
