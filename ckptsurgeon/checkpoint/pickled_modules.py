"""Reads the state dict of a pickled ``nn.Module`` without importing its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UnsafeError
from ..formats.base import limits
from ..formats.pickle.values import OpaqueResult, PickledSet, key_text
from ..tensors.info import TensorInfo
from .packed_parameters import is_script_object

__all__ = ["SearchLimit", "is_module", "module_entries"]

USUAL_KEY = 64
"""The number of characters that count as one tensor: a longer key counts as several tensors."""


class SearchLimit:
    """Counts how many modules and tensors one search may still visit.

    A module or tensor that occurs several times counts each time.
    """

    def __init__(self) -> None:
        self.modules = limits.TREE_NODES
        self.tensors = limits.TREE_TENSORS

    def take(self, *, modules: int = 0, tensors: int = 0) -> None:
        """Count visited modules and tensors; raises UnsafeError if the limit is exceeded."""
        self.modules -= modules
        self.tensors -= tensors
        if self.modules < 0 or self.tensors < 0:
            raise UnsafeError(
                "a pickled module has more submodules or tensors than ckpt searches.",
                hint="Save its state_dict() instead.",
                rule="module tree",
            )

    def take_key(self, characters: int) -> None:
        """Count a visited tensor; one whose key is long counts several times. Raises UnsafeError as ``take`` does."""
        self.take(tensors=1 + characters // USUAL_KEY)


def is_module(node: Any) -> bool:
    """Return whether a pickled object has the attributes that every ``nn.Module`` has, such as ``_parameters``."""
    return isinstance(node, OpaqueResult) and {"_parameters", "_buffers", "_modules"} <= node.attributes().keys()


def module_entries(root: OpaqueResult, allowed: SearchLimit) -> Iterator[tuple[str, Any]]:
    """Yield the entries of ``state_dict()`` of a pickled ``nn.Module``, in the same order.

    The values are tensors and objects that may be quantised layers. Such an object is either a submodule whose
    attributes are unknown, because its class defines its own pickling, or an attribute that is an object of
    TorchScript.

    Raises UnsafeError if there are more modules or tensors than ``allowed``, a module is nested too deeply, or a name
    is too long.
    """
    waiting, objects = [("", root, 0)], dict[int, list[tuple[Any, Any]]]()
    while waiting:
        prefix, module, depth = waiting.pop()
        if depth > limits.TREE_DEPTH or len(prefix) > limits.KEY_CHARACTERS:
            deep = f"is nested more than {limits.TREE_DEPTH} levels deep"
            name = f"has a name of more than {limits.KEY_CHARACTERS} characters"
            raise UnsafeError(
                f"a pickled module {deep if depth > limits.TREE_DEPTH else name}.",
                hint="Save its state_dict() instead.",
                rule="module tree",
            )
        allowed.take(modules=1)
        if not is_module(module):
            allowed.take_key(len(prefix))
            yield prefix[:-1], module
            continue
        yield from ((f"{prefix}{name}", value) for name, value in _own_tensors(module, allowed))
        if id(module) not in objects:  # searched once: thousands of names may stand for one module
            attributes = module.attributes().items()
            objects[id(module)] = [(name, value) for name, value in attributes if is_script_object(value)]
        for name, value in objects[id(module)]:
            key = f"{prefix}{key_text(name)}"
            allowed.take_key(len(key))
            yield key, value
        children = module.attributes().get("_modules")
        named = children.items() if isinstance(children, dict) else ()
        allowed.take(modules=len(named))
        waiting += [
            (f"{prefix}{key_text(name)}.", child, depth + 1)
            for name, child in reversed(named)
            if isinstance(child, OpaqueResult)
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
