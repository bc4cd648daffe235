"""Dots too many at the ends of a name, or two in a row: what was meant without them."""

from __future__ import annotations

import re

from ...util.text import escape

__all__ = ["undotted", "without_dots"]

_PIECE = re.compile(r"\\.|\[[^\]]*\]|\{[^{}]*\}|\.+|.", re.DOTALL)


def undotted(text: str) -> str:
    """Return a pattern or a target without dots at its ends, and with one where there are several in a row."""
    pieces = _PIECE.findall(text)
    first = 1 if pieces and _is_dots(pieces[0]) else 0
    end = len(pieces) - (1 if pieces and _is_dots(pieces[-1]) else 0)
    return "".join("." if _is_dots(piece) else piece for piece in pieces[first:end])


def without_dots(text: str, before: str = "", behind: str = "") -> str:
    """Return the hint for a pattern or a target with a dot too many, as it stands between other words of a user."""
    at_ends = text.startswith(".") or text.endswith(".")
    why = "a module is named without the dot" if at_ends else "without two dots in a row"
    return f"Write {escape(f'{before}{undotted(text)}{behind}')}: {why}."


def _is_dots(piece: str) -> bool:
    return not piece.strip(".")
