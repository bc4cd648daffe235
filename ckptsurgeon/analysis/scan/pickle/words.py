"""The arguments of a call as text: escaped, shortened, and never longer however they share and nest."""

from __future__ import annotations

from ....util.text import escape
from .strings import BYTES, items_of, number_at, raw_at, text_at
from .values import UNKNOWN, Call, Name, Value

__all__ = ["call_text"]

_SHOWN = 200
"""Characters of one call."""
_TEXT = 60
"""Characters of one text in it."""
_DEEP = 6
_ITEMS = 8
_CLOSING = {"[": "]", "{": "}", "set(": ")", "frozenset(": ")"}
_WORDS = {0x4E: "None", 0x88: "True", 0x89: "False"}


def call_text(data: bytes, function: Value, args: Value, method: str = "") -> str:
    """Return ``os.system('touch x')`` for a call that was not made, of a function or of a method of a value."""
    writer = _Writer(data)
    writer.call(function, args, 0, method)
    return escape("".join(writer.parts), _SHOWN)


class _Writer:
    """Writes values until there is no room; what is left out becomes a dot of an ellipsis."""

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
        items = items_of(self.data, args, _ITEMS)
        if items is not None:
            self.put("(")
            self.values(items, depth)
            self.put(")")
        else:
            self.put("(*")
            self.value(args, depth + 1)
            self.put(")")

    def values(self, values: tuple[Value, ...] | list[Value], depth: int) -> None:
        for i, value in enumerate(values):
            if i:
                self.put(", ")
            if self.room < 0:
                self.put("…")
                return
            self.value(value, depth + 1)

    def value(self, value: Value, depth: int) -> None:
        if depth > _DEEP or self.room < 0:
            self.put("…")
        elif isinstance(value, Name):
            self.put(f"{escape(value.module, _TEXT)}.{escape(value.name, _TEXT)}")
        elif isinstance(value, Call):
            self.call(value.function, value.args, depth)
        elif isinstance(value, tuple):
            self.put("(")
            self.values(value, depth)
            self.put(")")
        elif isinstance(value, list):
            self.put(str(value[0]))
            self.values(value[1:], depth)
            self.put(_CLOSING[str(value[0])])
        else:
            self.number(value, depth)

    def number(self, at: Value, depth: int) -> None:
        assert isinstance(at, int)  # the last kind of value there is
        items = items_of(self.data, at, _ITEMS) if at != UNKNOWN else None
        if items is None:
            self.put(self.plain(at))
        else:
            self.put("(")
            self.values(items, depth)
            self.put(")")

    def plain(self, at: int) -> str:
        """Return a few words for the plain data that begins at an offset."""
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
