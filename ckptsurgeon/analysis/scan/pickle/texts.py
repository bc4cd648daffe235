"""Decodes the strings and numbers of a pickle, and formats its calls with their arguments as short strings."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

from ....formats.pickle.state import bounds
from ....util.text import escape
from .values import UNKNOWN, ImportedName, UnmadeCall, Value

__all__ = ["BYTES", "TEXTS", "call_text", "items_of", "number_at", "raw_at", "text_at"]

# Functions that decode strings and numbers from their instructions.

TEXTS = b"SUTVX\x8c\x8d"
"""Opcodes of strings: STRING, SHORT_BINSTRING, BINSTRING; UNICODE, BINUNICODE, SHORT_BINUNICODE, BINUNICODE8."""
BYTES = b"BC\x8e\x96"
"""Opcodes of byte strings: BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8."""

_INTEGERS = {0x4B: struct.Struct("<B"), 0x4D: struct.Struct("<H"), 0x4A: struct.Struct("<i")}
_DOUBLE = struct.Struct(">d")
_LONGEST_NUMBER = 1024
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_SIGNS = {
    b"\\": b"\\", b"'": b"'", b'"': b'"', b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t",
    b"v": b"\v", b"\n": b"",
}  # fmt: skip
"""The escape sequences of a Python 2 string, by the character after the backslash."""
_MARK = 0x28
_CLOSING = b"tleud\x90\x91"


def raw_at(data: bytes, at: int, most: int) -> bytes:
    """Return at most ``most`` bytes of the operand of the instruction at the offset ``at``, which must be valid."""
    begin, end = bounds(data, at, len(data))
    return data[begin : min(end, begin + most)]


def text_at(data: bytes, at: int, most: int) -> str | None:
    """Return at most ``most`` characters of the string in the instruction at ``at``; None if it has no string."""
    if not 0 <= at < len(data) or data[at] not in TEXTS:
        return None
    raw = raw_at(data, at, 4 * most)
    op = data[at : at + 1]
    if op == b"V":
        return raw.rstrip(b"\n").decode("raw-unicode-escape", "replace")[:most]
    if op == b"S":
        raw = _unquoted(raw)
    # the limit may cut the bytes inside a character
    return raw.decode("utf-8", "surrogatepass" if len(raw) < 4 * most and _is_utf8(raw) else "backslashreplace")[:most]


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _unquoted(line: bytes) -> bytes:
    """Return the content of a quoted string of protocol 0, with its escape sequences decoded."""
    return _ESCAPE.sub(_unescaped, line.strip()[1:-1])


def _unescaped(found: re.Match[bytes]) -> bytes:
    said = found[1]
    if said[0] in b"01234567":
        return bytes([int(said, 8) & 0xFF])
    if said[:1] == b"x" and len(said) == 3:
        return bytes([int(said[1:], 16)])
    return _SIGNS.get(said, found[0])


def number_at(data: bytes, at: int) -> int | float | None:
    """Return the number in the instruction at ``at``; None if it has no number, or a very long one."""
    if not 0 <= at < len(data):
        return None
    op = data[at]
    raw = raw_at(data, at, _LONGEST_NUMBER)
    if op in _INTEGERS:
        return int(_INTEGERS[op].unpack(raw)[0])
    if op in b"\x8a\x8b":
        return int.from_bytes(raw, "little", signed=True) if len(raw) < _LONGEST_NUMBER else None
    if op == 0x47:
        return float(_DOUBLE.unpack(raw)[0])
    if op in b"IL":
        line = raw.strip().rstrip(b"L")
        return int(line) if line.removeprefix(b"-").isdigit() and len(line) < _LONGEST_NUMBER else None
    return None


def items_of(data: bytes, value: object, most: int) -> tuple[object, ...] | None:
    """Return at most ``most`` items of a tuple; None if the value is not a tuple."""
    if isinstance(value, tuple):
        return value[:most]
    if not isinstance(value, int) or not 0 <= value < len(data):
        return None
    if data[value] == _MARK:
        return tuple(islice(_literals(data, value + 1), most))
    return () if data[value : value + 1] == b")" else None


def _literals(data: bytes, at: int) -> Iterator[int]:
    """Yield the offset of each number or constant from ``at`` on, up to the instruction that ends the group."""
    while data[at] not in _CLOSING:
        yield at
        _, at = bounds(data, at, len(data))


# Calls as strings: escaped, and shortened to a limit even if the arguments share or nest values.

_SHOWN = 200
"""The largest number of characters in the text of a call."""
_TEXT = 60
"""At most this many characters of a string in a call are shown."""
_DEEP = 6
_ITEMS = 8
_CLOSING_BRACKETS = {"[": "]", "{": "}", "set(": ")", "frozenset(": ")"}
_WORDS = {0x4E: "None", 0x88: "True", 0x89: "False"}


def call_text(data: bytes, function: Value, args: Value, method: str = "") -> str:
    """Return the text of a call, such as ``os.system('touch x')``; the call was not made.

    If ``method`` is given, such as ``.__setstate__``, this method of the object ``function`` is called.
    """
    writer = _Writer(data)
    writer.call(function, args, 0, method)
    return escape("".join(writer.parts), _SHOWN)


class _Writer:
    """Formats values as strings until the limit of characters is reached; an ellipsis replaces the rest."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.parts: list[str] = []
        self.room = _SHOWN

    def put(self, text: str) -> None:
        self.parts.append(text)
        self.room -= len(text)

    def call(self, function: Value, args: Value, depth: int, method: str = "") -> None:
        self.value(function, depth + 1)
        self.put(method)
        items = items_of(self.data, args, _ITEMS + 1)
        if items is not None:
            self.put("(")
            self.values(items, depth)
            self.put(")")
        else:
            self.put("(*")
            self.value(args, depth + 1)
            self.put(")")

    def values(self, values: tuple[Value, ...] | list[Value], depth: int, *, are_pairs: bool = False) -> None:
        for i, value in enumerate(values):
            if i:
                self.put(": " if are_pairs and i % 2 else ", ")
            if self.room < 0 or i == (2 * _ITEMS if are_pairs else _ITEMS):
                self.put("…")
                return
            self.value(value, depth + 1)

    def value(self, value: Value, depth: int) -> None:
        if depth > _DEEP or self.room < 0:
            self.put("…")
        elif isinstance(value, ImportedName):
            self.put(f"{escape(value.module, _TEXT)}.{escape(value.name, _TEXT)}")
        elif isinstance(value, UnmadeCall):
            self.call(value.function, value.args, depth)
        elif isinstance(value, tuple):
            self.put("(")
            self.values(value, depth)
            self.put(")")
        elif isinstance(value, list):
            self.put(str(value[0]))
            self.values(value[1:], depth, are_pairs=value[0] == "{")
            self.put(_CLOSING_BRACKETS[str(value[0])])
        else:
            self.number(value, depth)

    def number(self, at: Value, depth: int) -> None:
        assert isinstance(at, int)  # the only kind of value left
        items = items_of(self.data, at, _ITEMS + 1) if at != UNKNOWN else None
        if items is None:
            self.put(self.plain(at))
        else:
            self.put("(")
            self.values(items, depth)
            self.put(")")

    def plain(self, at: int) -> str:
        """Return a short string for the plain data that begins at the offset ``at``."""
        if at == UNKNOWN or at >= len(self.data):
            return "?"
        text = text_at(self.data, at, _TEXT + 1)
        if text is not None:
            return repr(text) if len(text) <= _TEXT else f"{text[:_TEXT]!r}…"
        op = self.data[at]
        if op in BYTES:
            raw = raw_at(self.data, at, _TEXT + 1)
            return repr(raw) if len(raw) <= _TEXT else f"{raw[:_TEXT]!r}…"
        number = number_at(self.data, at)
        if number is not None:
            return repr(number) if isinstance(number, float) or abs(number) < 1 << 64 else "a large number"
        return _WORDS.get(op, "…")
