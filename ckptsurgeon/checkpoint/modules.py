"""Reads the state dict of an ``nn.Module`` that was pickled as a whole, without importing its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UnsafeError
from ..formats.base import limits
from ..formats.pickle.values import OpaqueResult, PickledSet, key_text
from ..tensors.info import TensorInfo

__all__ = ["SearchLimit", "is_module", "module_tensors"]


class SearchLimit:
    """How many modules and tensors one search may still visit; shared ones are counted each time."""

    def __init__(self) -> None:
        self.modules = limits.TREE_NODES
        self.tensors = limits.TREE_TENSORS

    def take(self, *, modules: int = 0, tensors: int = 0) -> None:
        """Count visited modules and tensors; raises UnsafeError if the limit is exceeded."""
        self.modules -= modules
        self.tensors -= tensors
        if self.modules < 0 or self.tensors < 0:
            raise UnsafeError("a pickled module nests too deeply or shares too much.", rule="module tree")


def is_module(node: Any) -> bool:
    """Return whether a pickled object has the attributes of every ``nn.Module``."""
    return isinstance(node, OpaqueResult) and {"_parameters", "_buffers", "_modules"} <= node.attributes().keys()


def module_tensors(root: OpaqueResult, allowed: SearchLimit) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the entries of ``state_dict()`` of a pickled ``nn.Module``, in its order.

    Raises UnsafeError if there are more modules or tensors than ``allowed``, or a name is too long.
    """
    waiting = [("", root, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        if depth > limits.TREE_DEPTH or len(prefix) > limits.KEY_CHARACTERS:
            raise UnsafeError("a pickled module nests too deeply.", rule="module tree")
        allowed.take(modules=1)
        yield from ((f"{prefix}{name}", value) for name, value in _own_tensors(module, allowed))
        children = module.attributes().get("_modules")
        named = children.items() if isinstance(children, dict) else ()
        allowed.take(modules=len(named))
        waiting += [
            (f"{prefix}{key_text(name)}.", child, depth + 1) for name, child in reversed(named) if is_module(child)
        ]


def _own_tensors(module: OpaqueResult, allowed: SearchLimit) -> Iterator[tuple[str, TensorInfo]]:
    attributes = module.attributes()
    skipped = attributes.get("_non_persistent_buffers_set")
    hidden = {name for name in skipped if isinstance(name, str)} if isinstance(skipped, PickledSet) else set()
    for kind in ("_parameters", "_buffers"):
        entries = attributes.get(kind)
        if not isinstance(entries, dict):
            continue
        allowed.take(tensors=len(entries))
        for name, value in entries.items():
            if isinstance(value, TensorInfo) and not (kind == "_buffers" and name in hidden):
                yield key_text(name), value
