"""Lists the values of an item of an Orbax checkpoint, from its ``_METADATA``, or from its folders if it has none.

https://github.com/google/orbax/blob/main/checkpoint/orbax/checkpoint/_src/metadata/tree.py describes the fields of
``tree_metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.local import LocalFolder
from ...util.text import escape
from ..base import limits
from ..base.untrusted import parse_json
from .files import StoredFile

__all__ = ["METADATA", "Item", "Leaf", "put", "read_item"]

METADATA = "_METADATA"
_FILES = {2: ".zarray", 3: "zarr.json"}
_EMPTY = ("Dict", "List", "Tuple", "NamedTuple")
_ENDS = tuple(f"/{name}" for name in _FILES.values())


@dataclass(frozen=True)
class Leaf:
    """A value of a tree: ``path`` has the keys that lead to it, ``kind`` is Orbax's name of its type.

    A value that is not ``stored`` is empty. ``part`` is the shape of the part that each device wrote, None if not
    known.
    """

    path: tuple[str, ...]
    kind: str
    stored: bool = True
    part: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name of the array in the store."""
        return ".".join(self.path)

    @property
    def is_text(self) -> bool:
        """Whether the value is a string, which is not stored as an array."""
        return self.kind == "string"

    @property
    def empty(self) -> Any:
        """The value that stands for a leaf that is not stored: an empty dict for some kinds, otherwise None."""
        return {} if self.kind in _EMPTY else None


@dataclass(frozen=True)
class Item:
    """The values of an item; ``version`` is the version of zarr. If ``is_complete`` is true, all chunks are stored."""

    leaves: Sequence[Leaf]
    version: int
    is_complete: bool
    metadata: Mapping[str, str]

    @property
    def suffix(self) -> str:
        """The ending of the key of an array's metadata: ``/.zarray`` or ``/zarr.json``."""
        return f"/{_FILES[self.version]}"


def read_item(folder: LocalFolder, files: Mapping[str, StoredFile]) -> Item:
    """Return the values of an item.

    Raises FormatError if the metadata of the item are not valid, UnsafeError if they list too many values.
    """
    if METADATA not in files:
        return _of_folders(folder, files)
    said = _json(folder, METADATA, limits.INDEX_BYTES)
    listed = said.get("tree_metadata") if isinstance(said, dict) else None
    if not isinstance(listed, dict):
        raise _malformed("has no valid entry tree_metadata")
    if len(listed) > limits.TENSORS:
        raise UnsafeError(f"{METADATA} lists over {limits.TENSORS:,} values.", rule="tensors")
    leaves = [_leaf(value) for value in listed.values()]
    custom = said.get("custom_metadata")
    return Item(
        leaves,
        3 if said.get("use_zarr3") is True else 2,
        said.get("store_array_data_equal_to_fill_value") is True,
        {key: _text(value) for key, value in custom.items()} if isinstance(custom, dict) else {},
    )


def _json(folder: LocalFolder, name: str, most: int) -> Any:
    with closing(folder.file(name)) as file:
        if file.size > most:
            raise UnsafeError(f"{escape(file.uri)} has over {most:,} bytes.", rule="orbax metadata")
        try:
            return parse_json(file.read(0, file.size))
        except ValueError as error:
            raise FormatError(f"{escape(file.uri)} is not valid JSON: {error}.", rule="orbax metadata") from None


def _text(value: Any) -> str:
    """Return an entry of the user's metadata as text: a string as it is, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _malformed(what: str) -> FormatError:
    return FormatError(f"{METADATA} {what}.", rule="orbax metadata")


def _leaf(said: Any) -> Leaf:
    keys, value = (said.get("key_metadata"), said.get("value_metadata")) if isinstance(said, dict) else (None, None)
    if not isinstance(keys, list) or not isinstance(value, dict) or not isinstance(value.get("value_type"), str):
        raise _malformed("has a value without keys or without a type")
    if not 0 < len(keys) <= limits.TREE_DEPTH:
        raise _malformed(f"has a value whose path has no keys, or over {limits.TREE_DEPTH}")
    names = [one.get("key") if isinstance(one, dict) else None for one in keys]
    if not all(type(name) in (str, int) for name in names):
        raise _malformed("has a value with a key that is neither a string nor a number")
    part = value.get("write_shape")
    if part is not None and not (isinstance(part, list) and all(type(size) is int and size >= 0 for size in part)):
        raise _malformed("has a write_shape that is not a list of sizes")
    return Leaf(
        tuple(map(str, names)),
        value["value_type"],
        value.get("skip_deserialize") is not True,
        None if part is None else tuple(part),
    )


def _of_folders(folder: LocalFolder, files: Mapping[str, StoredFile]) -> Item:
    """Return the values of an item without ``_METADATA``: each folder with zarr's metadata is an array.

    Orbax before 0.5 and T5X wrote such items. The folder of an array has the keys that lead to it as its name, joined
    by dots. Raises FormatError if the values cannot be found in this way.
    """
    found = [name for name in files if name.endswith(_ENDS)]
    if not found:
        raise FormatError(
            f"{escape(folder.uri)} has no {METADATA}, the list of the checkpoint's values.",
            hint="Restore the checkpoint with the version of Orbax that wrote it, and save it again.",
            rule="orbax metadata",
        )
    versions = {3 if name.endswith(_FILES[3]) else 2 for name in found}
    if len(versions) > 1:
        raise FormatError(
            f"{escape(folder.uri)} has arrays in both zarr 2 and zarr 3, and no file says which of them belong to the "
            "checkpoint.",
            rule="orbax metadata",
        )
    names = [name.rpartition("/")[0] for name in found]
    return Item([Leaf(tuple(name.split(".")), "") for name in names], versions.pop(), False, {})


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value into nested dicts at ``path``; raises FormatError if ``path`` or a part of it already has a value."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise _twice(path)
    if path[-1] in tree:
        raise _twice(path)
    tree[path[-1]] = value


def _twice(path: Sequence[str]) -> FormatError:
    return FormatError(f"two values of the checkpoint have the key {escape('.'.join(path))}.", rule="duplicate key")
