"""Builds nested groups from tensors whose keys are paths, such as "a/b", for formats that nest groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ...errors import OutputError
from ...util.text import escape
from . import limits
from .header import OutTensor

__all__ = ["Nested", "leaves", "nested"]

Nested: TypeAlias = "dict[str, Nested | OutTensor]"
"""A group: its tensors and its inner groups, by name."""


def nested(tensors: Sequence[OutTensor], separator: str, writer: str) -> Nested:
    """Return the outermost group, with each tensor inside the groups that its key names: "a/b" is in the group "a".

    ``separator`` separates the names in a key. ``writer`` is the name of the format, for messages. Raises OutputError
    if the key of a tensor is also the path of a group, or has too many names.
    """
    tree: Nested = {}
    for tensor in tensors:
        *path, name = tensor.key.split(separator)
        if len(path) >= limits.TREE_DEPTH:
            raise OutputError(
                f"the key {escape(tensor.key)} has more than {limits.TREE_DEPTH} parts between {separator!r}: {writer} "
                "would nest them too deeply.",
                hint="Rename the key with ckpt rename --map, or write safetensors: -o FILE.safetensors.",
            )
        level: Nested | OutTensor = tree
        for part in path:
            level = level.setdefault(part, {}) if isinstance(level, dict) else level
        if not isinstance(level, dict):
            raise _tensor_and_group(level.key, tensor.key, writer)
        if name in level:
            raise _tensor_and_group(tensor.key, next(leaves({name: level[name]})).key, writer)
        level[name] = tensor
    return tree


def _tensor_and_group(short: str, long: str, writer: str) -> OutputError:
    return OutputError(
        f"{writer} cannot store both {escape(short)} and {escape(long)}: {escape(short)} would be both a tensor and a "
        "group of tensors.",
        hint="Rename one of the keys with ckpt rename --map, or write safetensors: -o FILE.safetensors.",
    )


def leaves(tree: Nested) -> Iterator[OutTensor]:
    """Yield the tensors of a group and of all groups inside it."""
    for one in tree.values():
        if isinstance(one, dict):
            yield from leaves(one)
        else:
            yield one
