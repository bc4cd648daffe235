"""Reads and writes the values of a GGUF file's metadata, and converts them from and to text.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import ConfigError, FormatError, UnsafeError
from ...util.text import escape
from ..base import limits
from ..base.header import StoredEntry
from .cursor import Cursor

__all__ = [
    "ARRAY",
    "BOOL",
    "FLOAT32",
    "INT32",
    "TEXT",
    "UINT32",
    "Typed",
    "array",
    "kind_of",
    "packed",
    "parsed",
    "read_entry",
    "text",
    "texts_in",
]

UINT32, INT32, FLOAT32, BOOL, TEXT, ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NAMES = {0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool", 8: "text",
          10: "uint64", 11: "int64", 12: "float64"}  # fmt: skip
_FLOATS = (6, 12)
SHOWN = 16
"""The length of the longest array whose values are shown, and are copied into other formats."""


class Typed(NamedTuple):
    """A value of the metadata: the format's number for its type, and its bytes as stored."""

    kind: int
    raw: bytes


def read_entry(cursor: Cursor) -> tuple[StoredEntry, str | None]:
    """Return the type and position of the next value, and its value as text (None if it is too long to show)."""
    kind = cursor.small_number()
    begin = cursor.offset
    if kind == ARRAY:
        number, said, shown = _array(cursor)
        return StoredEntry(kind, begin, cursor.offset - begin, said, number), shown
    shown = _scalar(cursor, kind)
    said = f"a string of {cursor.offset - begin - 8:,} bytes" if kind == TEXT else ""
    return StoredEntry(kind, begin, cursor.offset - begin, said), shown


def _scalar(cursor: Cursor, kind: int) -> str | None:
    if kind == TEXT:
        length = cursor.number()
        if length > limits.GGUF_TEXT:
            cursor.skip(length)
            return None
        return cursor.take(length).decode("utf-8", "replace")
    return text(kind, _number(cursor, kind))


def _number(cursor: Cursor, kind: int) -> Any:
    if kind not in _FORMATS:
        raise FormatError(f"{cursor.within} has the unknown type {kind}.", rule="metadata type")
    raw = cursor.take(struct.calcsize(_FORMATS[kind]))
    if kind == BOOL and raw[0] > 1:
        raise FormatError(f"{cursor.within} is a bool with the value {raw[0]}, not 0 or 1.", rule="metadata type")
    return struct.unpack(f"<{_FORMATS[kind]}", raw)[0]


def _array(cursor: Cursor) -> tuple[int, str, str | None]:
    """Read an array; return its length, a description, and its values as JSON.

    The values are None if there are too many to show, or if one is too long or not a finite number. Raises FormatError
    if the array cannot be read, UnsafeError if it has too many strings.
    """
    kind, number = cursor.small_number(), cursor.number()
    if kind not in _NAMES:
        why = (
            "is an array of arrays, which cannot be read" if kind == ARRAY else f"has values of the unknown type {kind}"
        )
        raise FormatError(f"{cursor.within} {why}.", rule="metadata type")
    said = f"{number:,} values of the type {_NAMES[kind]}" if kind != TEXT else f"{number:,} strings"
    if kind == TEXT and number > limits.GGUF_TEXTS:
        raise UnsafeError(
            f"{cursor.within} has {number} strings, more than the limit of {limits.GGUF_TEXTS}.", rule="metadata size"
        )
    if number <= SHOWN:
        values = [_scalar(cursor, kind) if kind == TEXT else _number(cursor, kind) for _ in range(number)]
        if None in values or any(isinstance(one, float) and not math.isfinite(one) for one in values):
            return number, said, None
        return number, said, f"[{', '.join(json.dumps(one) if kind == TEXT else text(kind, one) for one in values)}]"
    if kind == TEXT:
        cursor.skip_texts(number)
    else:
        cursor.skip(number * struct.calcsize(_FORMATS[kind]))
    return number, said, None


def text(kind: int, value: Any) -> str:
    """Return a value as text; ``kind`` is the number of its type.

    A 32-bit float gets only as many digits as are needed to read the same float back.
    """
    if kind == BOOL:
        return "true" if value else "false"
    if kind != FLOAT32 or not math.isfinite(value):
        return str(value)
    return str(float(next(said for digits in range(1, 10) if _single(said := f"{value:.{digits}g}") == value)))


def _single(said: str) -> float:
    number = float(said)
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return math.inf


def packed(kind: int, value: Any) -> bytes:
    """Return the bytes of a value that is not an array; ``kind`` is the number of its type.

    Raises ``struct.error`` if the value does not fit the type.
    """
    if kind == TEXT:
        data = value if isinstance(value, bytes) else value.encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack(f"<{_FORMATS[kind]}", value)


def array(kind: int, values: Sequence[Any]) -> bytes:
    """Return the bytes of an array; ``kind`` is the number of its items' type."""
    head = struct.pack("<IQ", kind, len(values))
    if kind == TEXT:
        return head + b"".join(packed(TEXT, value) for value in values)
    return head + struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)


def texts_in(raw: bytes) -> list[str]:
    """Return the strings of an array of strings; [] for an array of other values.

    ``raw`` has the stored bytes of the array, as the function ``array`` returns them.
    """
    kind, number = struct.unpack_from("<IQ", raw)
    found, place = list[str](), 12
    for _ in range(number if kind == TEXT else 0):
        (length,) = struct.unpack_from("<Q", raw, place)
        found.append(raw[place + 8 : place + 8 + length].decode("utf-8", "replace"))
        place += 8 + length
    return found


def parsed(key: str, said: str, kind: int) -> bytes:
    """Return the bytes of the value ``said``, a text that a user wrote for ``key``; ``kind`` is the number of its type.

    Raises ConfigError if the text is not a value of this type.
    """
    try:
        if kind == TEXT:
            return packed(TEXT, said)
        if kind == ARRAY:
            return _parsed_array(json.loads(said))
        if kind == BOOL:
            return packed(BOOL, {"true": True, "false": False}[said.lower()])
        return packed(kind, float(said) if kind in _FLOATS else int(said))
    except (ValueError, LookupError, struct.error, OverflowError, TypeError):
        name = "array (JSON with only strings, only bools or only 32-bit numbers)" if kind == ARRAY else _NAMES[kind]
        raise ConfigError(
            f"{escape(key)} = {escape(said, 40)} in the metadata is not a value of the type {name}.",
            hint="Set another value with --set-metadata.",
        ) from None


_NUMBER = re.compile(r"-?\d{1,19}")
_OF_TEXTS = ("general.", "tokenizer.chat_template")
_OF_NUMBERS = re.compile(r"general\.(alignment|file_type|quantization_version|\w+\.count)")


def kind_of(key: str, said: str) -> int:
    """Return the number of the type of a new metadata entry, for the value ``said``, which a user wrote.

    For example, ``5`` is a number, unless ``key`` is one whose values are always strings, such as ``general.version``.
    """
    if key.startswith(_OF_TEXTS) and not _OF_NUMBERS.fullmatch(key):
        return TEXT
    if said in ("true", "false"):
        return BOOL
    if said.startswith("[") and said.endswith("]"):
        return ARRAY
    if _NUMBER.fullmatch(said):
        number = int(said)
        return UINT32 if 0 <= number < 2**32 else INT32 if -(2**31) <= number < 0 else 10 if number > 0 else 11
    try:
        return FLOAT32 if math.isfinite(float(said)) else TEXT
    except ValueError:
        return TEXT


def _parsed_array(values: Any) -> bytes:
    if not isinstance(values, list):
        raise ValueError("not a list")
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return array(TEXT, values)
    if kinds <= {bool}:
        return array(BOOL, values)
    return array(INT32 if kinds <= {int} else FLOAT32, values)
