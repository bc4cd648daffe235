"""Where in a file its state dict hangs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, FormatError, UnsafeError
from ..formats import Group, Opaque
from ..tensors import TensorInfo
from ..text import count, escape, listing

__all__ = ["NAMED_ROOTS", "Root", "find_root"]

NAMED_ROOTS = ("state_dict", "model_state_dict", "model", "module", "net")
"""Entries in which training frameworks keep the model, most specific first."""

MAX_NODES = 4_000_000
MAX_DEPTH = 64
MAX_MODULES = 200_000
"""How many containers, and how deep, are searched: files may nest and share without end."""


@dataclass(frozen=True)
class Root:
    """A state dict and the dotted path to it; '' is the top level."""

    path: str
    entries: Mapping[Any, Any]
    tensors: int


def find_root(tree: Any, wanted: str | None, uri: str) -> tuple[Root, list[Root]]:
    """Return the state dict of a file and those that were passed over.

    The top level if it holds tensors (and no named entry holds more), else the first named entry, else the
    only one. ``wanted`` decides; "." is the top level. Raises ConfigError when it is not there or several
    compete, FormatError when there is none.
    """
    candidates = list(_candidates(tree, uri))
    if wanted is not None:
        return _wanted(tree, wanted, candidates, uri), []
    if not candidates:
        raise FormatError(f"{escape(uri)} holds no state dict: {_contents(tree)}.", rule="no state dict")
    chosen = _preferred(candidates)
    if chosen is None:
        paths = [f"{root.path} ({count(root.tensors, 'tensor')})" for root in candidates]
        raise ConfigError(
            f"{escape(uri)} holds several state dicts: {listing(paths)}.",
            hint=f"Choose one with --root {escape(candidates[0].path)}.",
            details=[root.path for root in candidates],
        )
    return chosen, [root for root in candidates if root is not chosen]


def _preferred(candidates: Sequence[Root]) -> Root | None:
    by_path = {root.path: root for root in candidates}
    named = [by_path[name] for name in NAMED_ROOTS if name in by_path]
    top = by_path.get("")
    if top is not None and all(root.tensors <= top.tensors for root in named):
        return top
    if named:
        return named[0]
    return candidates[0] if len(candidates) == 1 else None


def _wanted(tree: Any, wanted: str, candidates: Sequence[Root], uri: str) -> Root:
    path = "" if wanted == "." else wanted
    for root in candidates:
        if root.path == path:
            return root
    entries = _state_dict(_descend(tree, path))
    tensors = sum(isinstance(value, TensorInfo) for value in entries.values())
    if not tensors:
        paths = [root.path or "." for root in candidates]
        raise ConfigError(
            f"--root {escape(wanted)} holds no tensors in {escape(uri)}.",
            hint=f"There are {listing(paths)}." if paths else "",
            details=paths,
        )
    return Root(path, entries, tensors)


def _descend(node: Any, path: str) -> Any:
    """Follow a dotted path; a key may hold dots itself, so the longest key that fits is taken."""
    while path:
        children = dict(_children(node))
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end])
            if name in children:
                node, path = children[name], ".".join(parts[end:])
                break
        else:
            return None
    return node


def _candidates(tree: Any, uri: str) -> Iterator[Root]:
    """Yield every state dict that is not optimizer state, outermost first."""
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), tree)])
    seen: set[int] = set()
    while queue:
        path, node = queue.popleft()
        if id(node) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(node))
        if len(seen) > MAX_NODES:
            raise UnsafeError(f"{escape(uri)} nests over {MAX_NODES} containers.", rule="tree size")
        entries = _state_dict(node)
        tensors = sum(isinstance(value, TensorInfo) for value in entries.values())
        if tensors and all(isinstance(key, str) for key in entries):
            yield Root(".".join(path), entries, tensors)
        if _is_module(node) or (isinstance(node, dict) and node.keys() >= {"state", "param_groups"}):
            continue
        for name, child in _children(node):
            if isinstance(child, (dict, list, tuple, Opaque)) and not name.lower().startswith("optim"):
                queue.append(((*path, name), child))


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, (list, tuple)):
        yield from ((str(i), value) for i, value in enumerate(node))
    elif isinstance(node, Opaque):
        yield from ((str(key), value) for key, value in node.attributes().items())


def _state_dict(node: Any) -> Mapping[Any, Any]:
    """Return the entries of a mapping, or the state dict of a module that was pickled whole."""
    if _is_module(node):
        return dict(_module_tensors(node))
    return node if isinstance(node, dict) else {}


def _is_module(node: Any) -> bool:
    return isinstance(node, Opaque) and {"_parameters", "_buffers", "_modules"} <= node.attributes().keys()


def _module_tensors(root: Opaque) -> Iterator[tuple[str, TensorInfo]]:
    """Yield what ``state_dict()`` of a pickled ``nn.Module`` would hold, without its class, in its order."""
    waiting, visits = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        visits += 1
        if visits > MAX_MODULES or prefix.count(".") > MAX_DEPTH:
            raise UnsafeError("a pickled module nests too deeply or shares too much.", rule="module tree")
        attributes = module.attributes()
        skipped = attributes.get("_non_persistent_buffers_set")
        hidden = {name for name in skipped if isinstance(name, str)} if isinstance(skipped, Group) else set()
        for kind in ("_parameters", "_buffers"):
            entries = attributes.get(kind)
            for name, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, TensorInfo) and not (kind == "_buffers" and name in hidden):
                    yield f"{prefix}{name}", value
        children = attributes.get("_modules")
        named = children.items() if isinstance(children, dict) else ()
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(named) if _is_module(child)]


def _contents(tree: Any) -> str:
    names = [f"{name}" for name, _ in _children(tree)]
    kind = str(tree) if isinstance(tree, Opaque) else type(tree).__name__
    return f"a {kind} of {listing(names)}" if names else f"a {kind}"
