"""Defines the values of a pickle that is read without imports: plain data, tensor headers, names."""

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
"""Characters of a text from a file that a message quotes."""
CALLS = 4
"""How many calls of the result of a call are looked through for a name."""


class GlobalName:
    """A name that a file mentions, such as ``argparse.Namespace``. Only ever shown.

    ``ours`` is our function in its place, if there is one; ``makes_tensors`` is set for the name that makes nearly
    every tensor.
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

    ``state`` is the plain data that the object would have been given; ``args`` what it would have been called with.
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
        """Keep the items that would have been appended to the object, or set on it as keys and values in turn."""
        self.items.extend(items)

    def attributes(self) -> Mapping[object, object]:
        """Return the attributes that the object would have had, as far as the file spells them."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            state = state[1] if not isinstance(state[0], dict) else state[0]
        return state if isinstance(state, dict) else {}


class PickledSet(list[Any]):
    """The members of a set, unhashed and in file order."""

    __slots__ = ()


class PickledFrozenSet(PickledSet):
    """The members of a set to which nothing can be added."""

    __slots__ = ()


def brief(value: object) -> str:
    """Return a few words for a value of a file. Never its ``repr``, which nesting can make endless."""
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
    """Return a mapping's key as a segment of a path: text as it stands, everything else in a few words."""
    return key if isinstance(key, str) else repr(key) if isinstance(key, Unhashable) else brief(key)


class Unhashable:
    """Stands in for a mapping key whose hash a file could make expensive; compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} key>"


def safe_key(key: Any) -> Any:
    """Return ``key`` if it hashes cheaply whatever its value, else a stand-in."""
    kind = type(key)
    if kind is str or kind is bytes or kind is bool or kind is float or key is None:
        return key
    if kind is int and -DICT_KEY_INT < key < DICT_KEY_INT:
        return key
    return Unhashable(key)


def set_items(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Put pairs into a mapping under safe keys."""
    for key, value in pairs:
        target[key if type(key) is str else safe_key(key)] = value
