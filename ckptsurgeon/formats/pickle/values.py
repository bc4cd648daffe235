"""Makes the values of a pickle that is read without imports: stand-ins for names, objects and sets, and plain data."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import FormatError
from ...util.text import escape
from ..base.limits import DICT_KEY_INT
from ..base.untrusted import CopyBudget

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
    "plain_functions",
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


# Plain data: Python's built-in types, and torch's sizes and devices.
#
# All functions that copy data share one CopyBudget, since a single pickle instruction can copy a large value.

_CHARACTERS = 32
"""Encoding this many characters takes as long as copying one element, and counts as one in the CopyBudget."""
_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")


def plain_functions(budget: CopyBudget) -> dict[tuple[str, str], Callable[..., object]]:
    """Return {(module, name) of a function in a pickle: ckptsurgeon's function in its place}, for plain data."""

    def mapping(*args: Any) -> object:
        return _mapping(budget, args[0]) if args else {}

    def sequence(*args: Any) -> tuple[Any, ...]:
        return tuple(_listed(budget, args))

    def group(*args: Any) -> PickledSet:
        return PickledSet(_listed(budget, args))

    def encode(text: Any, encoding: Any = "utf-8", *_: Any) -> object:
        return _encode(budget, text, encoding)

    table: dict[tuple[str, str], Callable[..., object]] = {
        ("collections", "OrderedDict"): mapping,
        ("collections", "defaultdict"): lambda *args: mapping(*args[1:]),
        ("collections", "Counter"): mapping,
        ("_codecs", "encode"): encode,
        ("torch", "Size"): sequence,
        ("torch", "device"): _device,
        ("torch.serialization", "_get_layout"): lambda name: name if isinstance(name, str) else "",
    }
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "set"] = table[builtins, "frozenset"] = group
        table[builtins, "complex"] = _complex
        table[builtins, "bytes"] = table[builtins, "bytearray"] = _bytes
    return table


def _listed(budget: CopyBudget, args: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    if not args or not isinstance(args[0], (list, tuple)):
        return ()
    budget.spend(len(args[0]))
    return args[0]


def _mapping(budget: CopyBudget, pairs: Any) -> object:
    """Return a new dict with the entries of ``pairs``: a dict, or a list of pairs as Python 2 pickled it.

    Raises FormatError if an item of a list is not a pair.
    """
    made: dict[Any, Any] = {}
    if isinstance(pairs, (dict, list, tuple)):
        budget.spend(len(pairs))
    if isinstance(pairs, dict):
        made.update(pairs)
    elif isinstance(pairs, (list, tuple)):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise FormatError("the pickle has a mapping that is not made of (key, value) pairs.", rule="pickle")
        set_items(made, pairs)
    return made


def _encode(budget: CopyBudget, text: Any, encoding: Any) -> object:
    """Return the bytes of a string; protocols 0 to 2 pickle bytes as ``_codecs.encode(text, 'latin1')``."""
    if not isinstance(text, str) or encoding not in _ENCODINGS:
        return OpaqueResult(GlobalName("_codecs", "encode"), (text, encoding))
    budget.spend(len(text) // _CHARACTERS)
    return codecs.encode(text, encoding)


def _device(*args: Any) -> object:
    """Return a ``torch.device`` as a string, such as ``cuda:0``; an OpaqueResult if the arguments are unusual."""
    if 1 <= len(args) <= 2 and all(type(a) is int or (type(a) is str and len(a) <= SHOWN) for a in args):
        return ":".join(str(a) for a in args)
    return OpaqueResult(GlobalName("torch", "device"), args)


def _complex(*args: Any) -> object:
    plain = all(type(a) in (int, float) for a in args) and len(args) <= 2
    return complex(*args) if plain else OpaqueResult(GlobalName("builtins", "complex"), args)


def _bytes(*args: Any) -> bytes:
    return args[0] if args and isinstance(args[0], bytes) else b""
