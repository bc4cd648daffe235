"""Defines the stand-ins for names, objects, sets and unusual dict keys in a pickle that is read without imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...util.text import escape
from ..base.limits import DICT_KEY_INT

__all__ = [
    "ARRAY",
    "META",
    "NESTED",
    "QUANTISED",
    "SPARSE",
    "GlobalName",
    "OpaqueResult",
    "PickledFrozenSet",
    "PickledSet",
    "PlacedBytes",
    "Unhashable",
    "brief",
    "key_text",
    "safe_key",
    "set_items",
]

# Reasons why the values of a tensor are not plain bytes, worded to follow a colon.

QUANTISED = "it is quantised"
SPARSE = "it is sparse"
NESTED = "its values are nested tensors"
META = "it was saved on the meta device, without values"
ARRAY = "its values are an array inside the pickle"


SHOWN = 60
"""The most characters of a string from a file that a message quotes."""
CALLS = 4
"""How many nested calls ``brief`` follows to find a name, since a pickle may call the result of a call."""


class GlobalName:
    """The name of a class or function in a pickle, such as ``argparse.Namespace``; it is shown, but never imported.

    ``ours`` is the function of ckptsurgeon that is called instead, or None. ``makes_tensors`` is True for
    ``_rebuild_tensor_v2``, the function that makes nearly all tensors.
    """

    __slots__ = ("makes_tensors", "module", "name", "ours")

    def __init__(self, module: str, name: str, ours: Callable[..., object] | None = None) -> None:
        self.module = module
        self.name = name
        self.ours = ours
        self.makes_tensors = ours is not None and (module, name) == ("torch._utils", "_rebuild_tensor_v2")

    def __repr__(self) -> str:
        return f"{escape(self.module, SHOWN)}.{escape(self.name, SHOWN)}"


class OpaqueResult:
    """A stand-in for the result of calling ``name``, which was not called.

    ``args`` are the arguments of the call; ``state`` is the data that the pickle would set on the object (BUILD).
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: object, args: object = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    def __repr__(self) -> str:
        return brief(self.name)

    def keep(self, items: list[Any]) -> None:
        """Store items that the pickle adds to the object; for a dict, they are keys and values in turn."""
        self.items.extend(items)

    def attributes(self) -> Mapping[object, object]:
        """Return the attributes that the object would have, as far as ``state`` contains them."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            state = state[1] if not isinstance(state[0], dict) else state[0]
        return state if isinstance(state, dict) else {}


class PlacedBytes:
    """A long byte string of a pickle that was not read: its offset and length in the file.

    ``kind`` is "bytes" for bytes, "text" for a string, which the file has in UTF-8, and "encoded" if the value is such
    a string encoded as Latin-1. ``nbytes`` is the number of bytes in the file; the number of Latin-1 bytes is known
    only when they are read.
    """

    __slots__ = ("kind", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, kind: str) -> None:
        self.offset = offset
        self.nbytes = nbytes
        self.kind = kind

    def encoded(self) -> PlacedBytes:
        """Return the stand-in for this string encoded as Latin-1."""
        return PlacedBytes(self.offset, self.nbytes, "encoded")

    def fits(self, nbytes: int) -> bool:
        """Return whether ``encoded`` may have ``nbytes`` bytes: a Latin-1 character has one or two bytes in UTF-8."""
        return nbytes == self.nbytes if self.kind == "bytes" else nbytes <= self.nbytes <= 2 * nbytes

    def __repr__(self) -> str:
        return f"{self.nbytes} bytes"


class PickledSet(list[Any]):
    """The members of a set in file order; they are not hashed, since a file could make hashes collide."""

    __slots__ = ()


class PickledFrozenSet(PickledSet):
    """The members of a ``frozenset``."""

    __slots__ = ()


def brief(value: object) -> str:
    """Return a short description of a value from a file; its ``repr`` could be endless if the value is nested."""
    for _ in range(CALLS):
        if isinstance(value, OpaqueResult):
            value = value.name
    if isinstance(value, OpaqueResult):
        return "an object"
    if isinstance(value, GlobalName):
        return repr(value)
    if isinstance(value, str):
        return f"{value[:SHOWN]!r}"
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**70) < value < 2**70):
        return repr(value)
    return f"a {type(value).__name__}"


def key_text(key: object) -> str:
    """Return a dict key as a segment of a path: a string unchanged, any other key as a short description."""
    return key if isinstance(key, str) else repr(key) if isinstance(key, Unhashable) else brief(key)


class Unhashable:
    """Stands in for a dict key that could be slow to hash or compare; it is compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} key>"


def safe_key(key: Any) -> Any:
    """Return ``key`` if it is None, a string, bytes, a float or an integer that is not huge; else an Unhashable.

    Other keys, such as nested tuples, could take long to hash, or could be chosen so that their hashes collide.
    """
    kind = type(key)
    if kind is str or kind is bytes or kind is bool or kind is float or key is None:
        return key
    if kind is int and -DICT_KEY_INT < key < DICT_KEY_INT:
        return key
    return Unhashable(key)


def set_items(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Put (key, value) pairs into a dict, with each key replaced by ``safe_key(key)``."""
    for key, value in pairs:
        target[key if type(key) is str else safe_key(key)] = value
