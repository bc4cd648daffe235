"""JSON as people mean it: a key that stands twice in one object, of which readers take either, is an error."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..util.text import escape

__all__ = ["read_json", "unique_keys"]

MOST_LEVELS = 100
"""How deep a document may nest; those of people have less than ten levels."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


def read_json(text: str | bytes) -> Any:
    """Return what a text spells; raises ValueError with the reason, and the line of a key that stands twice."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except _TwiceError as error:
        raise ValueError(f"{error}, again in line {_line_of_double(text)}") from None
    _check_levels(data)
    return data


def _check_levels(data: Any) -> None:
    """Raise ValueError for what nests so deep that functions which call themselves for each level would end."""
    level, depth = [data], 0
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(f"it nests over {MOST_LEVELS} levels deep")
        level = [one for held in level for one in (held.values() if isinstance(held, dict) else held)]


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members; raises ValueError where two have one key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _TwiceError(f"key {escape(double)} stands twice")
    return found


class _TwiceError(ValueError):
    """Two members of one object have one key."""


def _line_of_double(text: str) -> int:
    """Return the line in which a key stands for the second time, of a text that is sound so far."""
    objects: list[set[str]] = []
    last = ""
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in "{[":
            objects.append(set())
        elif mark in "}]":
            objects.pop()
        elif mark != ":":
            last = mark
        elif (key := json.loads(last)) in objects[-1]:
            return 1 + text.count("\n", 0, token.start())
        else:
            objects[-1].add(key)
    return 1
