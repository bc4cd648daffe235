"""Says as text how two values of JSON differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text import brief_repr, escape, value_text

__all__ = ["UNSAID", "texts_apart"]

UNSAID = "not set"
"""The text of a value that is missing."""
BEFORE = 10
"""The number of characters of a string that are shown before the first difference."""
_IN_FULL: dict[type, int] = {list: 6, dict: 4}
"""The maximum number of entries of a list or dict that ``value_text`` shows; it leaves out further entries."""


def texts_apart(one: Any, other: Any, limit: int = 60) -> tuple[str, str]:
    """Return the texts of two different values, to show a user how they differ.

    Two short values are returned in full. Of two long lists or dicts, the first entries that differ are returned, with
    their position and the number of further differing entries. If a list only continues the other list, the texts are
    the two lengths. Of two strings of which one has over ``limit`` characters, the parts around the first difference
    are returned. Other long values are cut.
    """
    path = more = ""
    while _are_long(one, other, limit):
        sizes = [f"a {type(value).__name__} of {len(value)} values" for value in (one, other)]
        differing = _differing(one, other)
        if not differing:
            return (f"{sizes[0]}{_at(path, more)}", f"{sizes[1]}{_at(path, more)}")
        more = more or (f" and {len(differing) - 1} more" if differing[1:] else "")
        place, (one, other) = differing[0]
        path += f"[{escape(brief_repr(place, 24))}]"
    if isinstance(one, str) and isinstance(other, str) and max(len(one), len(other)) > limit:
        same = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        begin = max(0, same - BEFORE)
        one, other = (f"{'…' if begin else ''}{text[begin : begin + limit - 2]}" for text in (one, other))
    return f"{_text(one, limit)}{_at(path, more)}", f"{_text(other, limit)}{_at(path, more)}"


def _at(path: str, more: str) -> str:
    return f" at {path}{more}" if path else ""


class _Missing:
    """The value of an entry that a dict does not have."""


_MISSING = _Missing()


def _text(value: Any, limit: int) -> str:
    return UNSAID if value is _MISSING else value_text(value, limit)


def _are_long(one: Any, other: Any, limit: int) -> bool:
    """Return whether two values are lists, or dicts, that are too long to be shown in full."""
    kind = type(one)
    if kind not in _IN_FULL or type(other) is not kind:
        return False
    is_cut = max(len(one), len(other)) > _IN_FULL[kind]
    return is_cut or sum(len(brief_repr(value, limit)) for value in (one, other)) > limit


def _differing(one: Any, other: Any) -> list[tuple[Any, tuple[Any, Any]]]:
    """Return (index or key, two values) for each entry that differs between two lists, or between two dicts."""
    if isinstance(one, Mapping):
        pairs = {place: (one.get(place, _MISSING), other.get(place, _MISSING)) for place in (*one, *other)}
    else:
        pairs = dict(enumerate(zip(one, other, strict=False)))
    return [(place, pair) for place, pair in pairs.items() if pair[0] != pair[1]]
