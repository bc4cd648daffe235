"""The values on the stack of a decoded pickle.

A value has one of these types:

- ``int``: plain data; the int is the offset of the instruction at which the data begins
- ``tuple``: a tuple with all its items, which are values themselves
- ``list``: a container; first the bracket that opens it, such as "[", then its first few items
- ``ImportedName``: an imported class, function or other object
- ``UnmadeCall``: the result of a call that was not made
"""

from __future__ import annotations

from collections.abc import Callable

from ....formats.pickle.state import bounds
from ..findings import Use, Verdict

__all__ = [
    "KEPT",
    "UNKNOWN",
    "Check",
    "ImportedName",
    "UnmadeCall",
    "Value",
    "is_dict",
    "is_object",
    "is_state",
    "is_tuple",
]

KEPT = 10
"""The largest length of the list that represents a container: the bracket and nine items."""
SHOWN_CALLS = 3
"""At most this many calls of one name are shown with their arguments."""
UNKNOWN = -1
"""The offset that represents an unknown value, which was missing or is not in the file."""

Value = object
"""An int, a tuple, a list, an ImportedName or an UnmadeCall."""

Check = Callable[[Callable[[object], str | None], object], str]
"""A function that checks the arguments of a call of a known name, and returns what is wrong, or ''.

Its parameters are a function that returns an argument as a string (None if it is not a string), and the arguments."""


class ImportedName:
    """A name that a pickle imports, and its uses. ``quiet`` is true if a call with any arguments is harmless."""

    __slots__ = (
        "called",
        "calls",
        "changed",
        "check",
        "imported",
        "makes_tensors",
        "module",
        "name",
        "quiet",
        "verdict",
        "why",
    )

    def __init__(self, module: str, name: str, verdict: Verdict, check: Check | None = None) -> None:
        self.module = module
        self.name = name
        self.verdict = verdict
        self.check = check
        self.quiet = verdict < Verdict.CODE and check is None
        self.makes_tensors = (module, name) == ("torch._utils", "_rebuild_tensor_v2")
        self.imported = self.called = self.changed = 0
        self.calls: list[str] = []
        self.why = ""

    def blame(self, why: str) -> None:
        """Change the verdict on a known name to unknown code, because of how it is used; ``why`` is the reason."""
        self.verdict = Verdict.CODE
        self.quiet = False
        self.why = self.why or why

    def join(self, other: ImportedName) -> None:
        """Add the uses of the same name in another pickle."""
        self.imported += other.imported
        self.called += other.called
        self.changed += other.changed
        self.calls += other.calls[: SHOWN_CALLS - len(self.calls)]
        if other.verdict > self.verdict:
            self.blame(other.why)

    def use(self) -> Use:
        """Return the uses of the name as plain data."""
        return Use(
            self.module, self.name, self.verdict, imported=self.imported, called=self.called, changed=self.changed,
            calls=tuple(self.calls), why=self.why,
        )  # fmt: skip


class UnmadeCall:
    """The result of a call of ``function`` that was not made.

    ``base`` is the imported name at the beginning of the chain of calls.
    """

    __slots__ = ("args", "base", "function")

    def __init__(self, function: Value, args: Value, base: ImportedName) -> None:
        self.function = function
        self.args = args
        self.base = base


# Tests of the form of values; Python's two readers (in C and in Python) treat some unusual forms differently.

_MARK, _EMPTY_TUPLE, _TUPLE, _DICT, _NONE = b"(", b")", b"t", b"d", b"N"
_MADE = frozenset(b"RQP\x81\x92oi\x82\x83\x84")
"""Instructions whose result is unknown: calls, persistent ids, extensions."""


def is_tuple(data: bytes, value: Value) -> bool:
    """Return whether a value is written as a tuple."""
    if not isinstance(value, int):
        return isinstance(value, tuple)
    return data[value : value + 1] == _EMPTY_TUPLE or _closed_by(data, value) == _TUPLE


def is_dict(data: bytes, value: Value) -> bool:
    """Return whether a value is written as a dictionary."""
    if isinstance(value, list):
        return bool(value[0] == "{")
    return isinstance(value, int) and _closed_by(data, value) == _DICT


def is_state(data: bytes, value: Value) -> bool:
    """Return whether a value has a form in which picklers write the state of an object.

    An empty tuple, for example, does not have such a form.
    """
    if isinstance(value, tuple):
        return bool(value)
    if is_object(data, value) or is_dict(data, value):
        return True
    return isinstance(value, int) and (data[value : value + 1] == _NONE or _closed_by(data, value) == _TUPLE)


def is_object(data: bytes, value: Value) -> bool:
    """Return whether a value may be an object (an instance of a class), and not plain data."""
    if isinstance(value, int):
        return not 0 <= value < len(data) or data[value] in _MADE
    return isinstance(value, (ImportedName, UnmadeCall))


def _closed_by(data: bytes, at: int) -> bytes:
    """Return the opcode that ends a group of numbers and constants; b'' if there is no MARK at the offset ``at``."""
    if data[at : at + 1] != _MARK or at < 0:
        return b""
    at += 1
    while data[at] in b"KMJGN\x88\x89":
        _, at = bounds(data, at, len(data))
    return data[at : at + 1]
