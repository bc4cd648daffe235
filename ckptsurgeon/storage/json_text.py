"""Reads JSON strictly: a key that occurs twice in an object is an error, since readers differ on its value."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..util.text import escape

__all__ = ["read_json", "unique_keys"]

MOST_LEVELS = 100
"""The most levels of nesting in a document; usual documents have fewer than ten."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises ValueError with the reason, and the line of a repeated key."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    except _RepeatedKeyError as error:
        raise ValueError(f"{error}, again on line {_line_of_double(text)}") from None
    _check_levels(data)
    return data


def _check_levels(data: Any) -> None:
    """Raise ValueError if a document is nested too deeply for recursive functions."""
    level, depth = [data], 0
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(f"the document is nested more than {MOST_LEVELS} levels deep")
        level = [one for held in level for one in (held.values() if isinstance(held, dict) else held)]


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict with the (key, value) pairs of a JSON object; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _RepeatedKeyError(f"key {escape(double)} occurs twice")
    return found


class _RepeatedKeyError(ValueError):
    """Raised for a key that occurs twice in a JSON object."""


def _line_of_double(text: str) -> int:
    """Return the number of the first line in which a key of an object is repeated.

    Up to this line, the text must be valid JSON.
    """
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
