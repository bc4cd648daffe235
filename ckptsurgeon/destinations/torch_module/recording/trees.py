"""Walks over the nested arguments of operations.

``torch.utils._pytree`` does the same for all kinds of containers, but takes half of the time of a construction. So here
tuples, lists and dicts are walked directly, and ``_pytree`` handles only other containers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["instances_in", "replaced", "tensors_in"]

Kind = type[Any] | tuple[type[Any], ...]

_LEAVES = frozenset(
    {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of arguments that contain no other values."""


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return instances_in(tree, Tensor)


def instances_in(tree: Any, kind: Kind) -> list[Any]:
    """Return all objects of the class ``kind`` in nested arguments."""
    found: list[Any] = []
    _collect(tree, kind, found)
    return found


def _collect(tree: Any, kind: Kind, found: list[Any]) -> None:
    own = type(tree)
    if own is tuple or own is list or own is dict:
        for item in tree.values() if own is dict else tree:
            if isinstance(item, kind):
                found.append(item)
            elif type(item) not in _LEAVES:
                _collect(item, kind, found)
    elif isinstance(tree, kind):
        found.append(tree)
    elif own not in _LEAVES and not isinstance(tree, Tensor):
        leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, kind))
        found += [leaf for leaf in leaves if isinstance(leaf, kind)]


def replaced(tree: Any, kind: Kind, replace: Callable[[Any], Any]) -> Any:
    """Return the nested arguments ``tree`` with each value of the class ``kind`` replaced by ``replace(value)``."""
    own = type(tree)
    if own is tuple:
        return tuple([replaced(item, kind, replace) for item in tree])
    if own is list:
        return [replaced(item, kind, replace) for item in tree]
    if own is dict:
        return {key: replaced(item, kind, replace) for key, item in tree.items()}
    if isinstance(tree, kind):
        return replace(tree)
    if own in _LEAVES or isinstance(tree, Tensor):
        return tree
    return pytree.tree_map(
        lambda leaf: replace(leaf) if isinstance(leaf, kind) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, kind),
    )
