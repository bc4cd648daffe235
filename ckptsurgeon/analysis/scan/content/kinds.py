"""Of what kind a value is that a pickle spells, where C's reader and Python's part over one of another kind."""

from __future__ import annotations

from ..pickle.operands import bounds
from ..pickle.values import Call, Name, Value

__all__ = ["is_dict", "is_object", "is_state", "is_tuple"]

_MARK, _EMPTY_TUPLE, _TUPLE, _DICT, _NONE = b"(", b")", b"t", b"d", b"N"
_MADE = frozenset(b"RQP\x81\x92oi\x82\x83\x84")
"""What leaves what nobody knows: calls, persistent ids, extensions."""


def is_tuple(data: bytes, value: Value) -> bool:
    """Return whether a value is spelled as a tuple."""
    if not isinstance(value, int):
        return isinstance(value, tuple)
    return data[value : value + 1] == _EMPTY_TUPLE or _closed_by(data, value) == _TUPLE


def is_dict(data: bytes, value: Value) -> bool:
    """Return whether a value is spelled as a dictionary."""
    if isinstance(value, list):
        return bool(value[0] == "{")
    return isinstance(value, int) and _closed_by(data, value) == _DICT


def is_state(data: bytes, value: Value) -> bool:
    """Return whether a value is such as picklers write for the state of an object: what is false may be none."""
    if isinstance(value, tuple):
        return bool(value)
    if is_object(data, value) or is_dict(data, value):
        return True
    return isinstance(value, int) and (data[value : value + 1] == _NONE or _closed_by(data, value) == _TUPLE)


def is_object(data: bytes, value: Value) -> bool:
    """Return whether a value may be an object, and not plain data that the pickle spells."""
    if isinstance(value, int):
        return not 0 <= value < len(data) or data[value] in _MADE
    return isinstance(value, (Name, Call))


def _closed_by(data: bytes, at: int) -> bytes:
    """Return the instruction that ends what a mark at an offset began, of numbers and constants only."""
    if data[at : at + 1] != _MARK or at < 0:
        return b""
    at += 1
    while data[at] in b"KMJGN\x88\x89":
        _, at = bounds(data, at, len(data))
    return data[at : at + 1]
