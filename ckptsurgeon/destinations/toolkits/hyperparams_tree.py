"""The tree of a ``hyperparams.yaml`` as ruamel.yaml reads it: its nodes, their tags, and what refers to what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["needed_by", "nodes", "tag_of", "tagged"]

_REFERENCE = re.compile(r"<([^>]*)>")


def tag_of(node: Any) -> str:
    """Return the tag of a node as it is written, "" for none."""
    return str(getattr(getattr(node, "tag", None), "value", "") or "")


def needed_by(tree: Any, entry: str) -> set[str]:
    """Return the entries that one refers to, and those that these refer to, and itself."""
    needed, waiting = set[str](), [entry]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            references = (ref for text in _texts(tree[name]) for ref in _REFERENCE.findall(text))
            waiting += [top for top in (re.split(r"[\[.]", ref)[0].strip() for ref in references) if top in tree]
    return needed


def _texts(node: Any) -> Iterator[str]:
    for _, inner in nodes(node):
        value = getattr(inner, "value", inner)
        if isinstance(value, str):
            yield value


def nodes(node: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield every node of a tree with its path, in the order of the document; one that stands often, once."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from nodes(child, f"{path}.{key}", seen)


def tagged(tree: Any, *kinds: str) -> Iterator[str]:
    """Yield what stands behind tags such as ``!new:``, in the order of the document."""
    for _, node in nodes(tree):
        kind, colon, name = tag_of(node).partition(":")
        if colon and kind in kinds:
            yield name
