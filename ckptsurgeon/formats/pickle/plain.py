"""The functions by which pickles spell plain data: mappings, sets, bytes, in the names of Python 2 and 3.

Those that copy spend of one budget, since a value costs one instruction however large it is.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

from ...errors import FormatError
from ..base.bounds import Budget
from .values import SHOWN, Group, Name, Opaque, set_items

__all__ = ["plain_functions"]

_CHARACTERS = 32
"""Characters that are encoded in the time in which one element is copied."""
_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")


def plain_functions(budget: Budget) -> dict[tuple[str, str], Callable[..., object]]:
    """Return the functions by module and name."""

    def mapping(*args: Any) -> object:
        return _mapping(budget, args[0]) if args else {}

    def sequence(*args: Any) -> tuple[Any, ...]:
        return tuple(_listed(budget, args))

    def group(*args: Any) -> Group:
        return Group(_listed(budget, args))

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


def _listed(budget: Budget, args: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    if not args or not isinstance(args[0], (list, tuple)):
        return ()
    budget.spend(len(args[0]))
    return args[0]


def _mapping(budget: Budget, pairs: Any) -> object:
    """Return a mapping: a copy, or made from pairs as Python 2 pickled them."""
    made: dict[Any, Any] = {}
    if isinstance(pairs, (dict, list, tuple)):
        budget.spend(len(pairs))
    if isinstance(pairs, dict):
        made.update(pairs)
    elif isinstance(pairs, (list, tuple)):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise FormatError("a mapping is made of something other than pairs.", rule="pickle")
        set_items(made, pairs)
    return made


def _encode(budget: Budget, text: Any, encoding: Any) -> object:
    """Return the bytes that protocols 0 to 2 pickle as text: ``_codecs.encode(text, 'latin1')``."""
    if not isinstance(text, str) or encoding not in _ENCODINGS:
        return Opaque(Name("_codecs", "encode"), (text, encoding))
    budget.spend(len(text) // _CHARACTERS)
    return codecs.encode(text, encoding)


def _device(*args: Any) -> object:
    """Return ``cuda:0``; a device of other make stays a call."""
    if 1 <= len(args) <= 2 and all(type(a) is int or (type(a) is str and len(a) <= SHOWN) for a in args):
        return ":".join(str(a) for a in args)
    return Opaque(Name("torch", "device"), args)


def _complex(*args: Any) -> object:
    plain = all(type(a) in (int, float) for a in args) and len(args) <= 2
    return complex(*args) if plain else Opaque(Name("builtins", "complex"), args)


def _bytes(*args: Any) -> bytes:
    return args[0] if args and isinstance(args[0], bytes) else b""
