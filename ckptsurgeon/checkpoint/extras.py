"""What else is in a file beside its state dict, as inert values for people and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..formats import Array, Group, Name, Opaque
from ..tensors import TensorInfo
from ..text import count, shape_text

__all__ = ["Extra", "describe", "entries_beside"]

MAX_TEXT = 200
MAX_ITEMS = 8
MAX_COUNTED = 1_000_000

Plain = None | bool | int | float | str | list[Any]


@dataclass(frozen=True)
class Extra:
    """An entry that is no tensor of the state dict: ``value`` is set where it is small plain data."""

    key: str
    type: str
    value: Plain = None


def entries_beside(tree: Any, root: str, entries: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries beside the root and those among its tensors, each with its name."""
    if isinstance(tree, dict) and entries is not tree:
        head = root.partition(".")[0]
        for key, value in tree.items():
            if not (root and (str(key) == head or str(key) == root)):
                yield str(key), value
    prefix = f"{root}." if root else ""
    for key, value in entries.items():
        if not (isinstance(value, TensorInfo) and isinstance(key, str)):
            yield f"{prefix}{key}", value


def describe(key: str, value: Any) -> Extra:
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
        return _container(key, value)
    return Extra(key, type(value).__name__)


def _fits(value: bool | int | None) -> bool:
    return value is None or -(2**63) <= value < 2**64


def _container(key: str, value: Any) -> Extra:
    kind = {Group: "set"}.get(type(value), type(value).__name__)
    tensors = _tensors_in(value)
    holding = f", {count(tensors, 'tensor')} in it" if tensors else ""
    small = isinstance(value, (list, tuple)) and len(value) <= MAX_ITEMS and all(map(_is_scalar, value))
    return Extra(key, f"{kind} of {len(value)}{holding}", list(value) if small else None)


def _is_scalar(value: Any) -> bool:
    """Whether a value can be shown inside a list: never a container, whose nesting has no end."""
    if isinstance(value, (bool, int)):
        return _fits(value)
    return (isinstance(value, float) and math.isfinite(value)) or (isinstance(value, str) and len(value) <= MAX_TEXT)


def _tensors_in(value: Any) -> int:
    """Count the tensors in a nest of containers, each container once."""
    waiting, seen, tensors = [value], set[int](), 0
    while waiting and len(seen) < MAX_COUNTED:
        node = waiting.pop()
        if isinstance(node, TensorInfo):
            tensors += 1
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.values() if isinstance(node, dict) else node)
    return tensors
