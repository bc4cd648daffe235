"""The entries of a file beside its tensors that can be written into another: plain data, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..formats import Array, Group, Name, Opaque
from ..tensors import TensorInfo

__all__ = ["why_not_plain"]

MAX_VALUES = 1_000_000
"""How many values are looked at: files may share what they nest without end."""
MAX_DEPTH = 64
MAX_BITS = 2000


def why_not_plain(value: Any) -> str:
    """Return why a value cannot be carried, '' where it is plain: numbers, text, None, lists, tuples, dicts of them."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            return "it nests too much"
        why = _why(node)
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
    if isinstance(node, dict) and not all(key is None or isinstance(key, (str, int, float)) for key in node):
        return "it has keys that are no text or number"
    if isinstance(node, int) and node.bit_length() > MAX_BITS:
        return "it holds a huge number"
    if node is None or isinstance(node, (bool, int, float, str, list, tuple, dict)):
        return ""
    return f"it holds a {type(node).__name__}"


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, (list, tuple)):
        yield from node
