"""Words for people: escaped names, natural order, sizes, shortened lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from reprlib import Repr

__all__ = ["brief_repr", "count", "escape", "human_bytes", "human_count", "listing", "natural_key", "shape_text"]

LISTED = 5
"""How many offenders a message names before it says "and N more"."""

_DIGITS = re.compile(r"(\d+)")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters and a symbol that are drawn as nothing."""
MARKS = 4
"""Marks that one letter may carry, as in Vietnamese or Hebrew; a hundred would cover the lines above and below."""


def escape(name: str, limit: int = 300) -> str:
    """Return ``name`` safe for a terminal: control, format and bidirectional characters are written as escapes.

    Names longer than ``limit`` characters are cut in the middle.
    """
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-limit // 4 :]}"
    if name.isascii() and name.isprintable():
        return name
    shown, marks = [], 0
    for char in name:
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        shown.append(_visible(char, too_many=marks > MARKS))
    return "".join(shown)


def _visible(char: str, *, too_many: bool) -> str:
    if not too_many and char not in _BLANK and unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def brief_repr(value: object, limit: int = 60) -> str:
    """Return at most ``limit`` characters of a value's ``repr``, without making more of it than that.

    The ``repr`` of data in which one list stands many times can be gigabytes long.
    """
    short = Repr()
    short.maxlevel, short.maxlong = 3, limit
    short.maxstring = short.maxother = limit
    try:
        text = short.repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``layers.2`` before ``layers.10``."""
    parts = _DIGITS.split(name)
    return [(0, int(part), part) if i % 2 and len(part) < 20 else (1, 0, part) for i, part in enumerate(parts)]


def human_bytes(nbytes: int) -> str:
    """Return a size in decimal units: ``42.1 MB``."""
    return _scaled(nbytes, ("B", "kB", "MB", "GB", "TB", "PB"), "B")


def human_count(number: int) -> str:
    """Return a number of elements: ``37.4 k``, ``8.1 M``."""
    return _scaled(number, ("", "k", "M", "B", "T", "Q"), "")


def _scaled(number: int, units: Sequence[str], plain: str) -> str:
    if number < 1000:
        return f"{number} {plain}".strip()
    value, unit = float(number), 0
    while round(value, 1) >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {units[unit]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 key`` or ``213 keys``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Sequence[str], limit: int = LISTED, *, where: str = " (--json lists all)") -> str:
    """Return the first ``limit`` items, escaped, how many more there are, and where those are listed."""
    shown = ", ".join(escape(item) for item in items[:limit])
    more = len(items) - limit
    return f"{shown}, and {more} more{where}" if more > 0 else shown


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as the documentation writes it: ``(256, 256)``, ``(256)``, ``()``."""
    return f"({', '.join(map(str, shape))})"
