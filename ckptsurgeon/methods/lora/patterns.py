"""PEFT's patterns: which modules an entry of ``rank_pattern`` or ``alpha_pattern`` is of.

A pattern is a regular expression that a module's name ends with; the first one counts. Most are plain names, one for
each module, which are looked up: so tables of 100,000 entries take no longer than they are long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr

__all__ = ["MODULE", "PatternTable", "bounded"]

PATTERN, REPEATS, CHOICES, MODULE = 400, 4, 12, 400
"""Characters of a pattern, repetitions in it, characters of what it is held against: so each takes milliseconds."""

EXPRESSIONS, TRIES = 10_000, 10_000_000
"""Patterns of one table that are not plain names, and how often one is held against a module, which takes seconds."""

ENDS = r"(.*\.)?({})$"
"""How PEFT looks for a pattern at the end of a module's name (``get_pattern_key`` of peft/utils/other.py)."""

_SPECIAL = frozenset(r".^$*+?{}[]\|()")


class PatternTable:
    """The values of patterns, each compiled once. Raises ValueError for a pattern that could take too long."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        self._names: dict[str, tuple[int, Any]] = {}
        self._whole: dict[str, tuple[int, Any]] = {}
        self._others: list[tuple[int, re.Pattern[str], Any]] = []
        self._tries = 0
        self._spelled: list[str] = []
        self._used: set[int] = set()
        for number, (text, value) in enumerate((values or {}).items()):
            self._add(number, text, value)
            self._spelled.append(text)

    @property
    def unused(self) -> list[str]:
        """The patterns that decided for no module of those that were asked for."""
        return [text for number, text in enumerate(self._spelled) if number not in self._used]

    def _add(self, number: int, text: Any, value: Any) -> None:
        if not isinstance(text, str) or len(text) > PATTERN:
            raise ValueError(f"a pattern {brief_repr(text)}")
        name = _plain(text.removeprefix("^"))
        if name is not None:
            (self._whole if text.startswith("^") else self._names).setdefault(name, (number, value))
            return
        if len(self._others) == EXPRESSIONS:
            raise ConfigError(
                f"has over {EXPRESSIONS} patterns that are not plain names, more than are read.",
                hint="Write names as re.escape() does, with ^ in front.",
            )
        self._others.append((number, _compiled(text), value))

    def of(self, module: str, otherwise: Any) -> Any:
        """Return what the first pattern says that a module ends with."""
        tail = module[-MODULE:]
        found = [one[name] for one, name in self._asked(tail) if name in one]
        first, value = min(found, key=lambda one: one[0]) if found else (None, otherwise)
        if first is not None:
            self._used.add(first)
        for number, pattern, other in self._others:
            if first is not None and number > first:
                break
            self._tries += 1
            if self._tries > TRIES:
                raise ConfigError("has so many patterns, for so many modules, that comparing them would not end soon.")
            if pattern.match(tail):
                self._used.add(number)
                return other
        return value

    def _asked(self, tail: str) -> list[tuple[dict[str, tuple[int, Any]], str]]:
        """Return under which names a module may stand, and where: ``$`` is also in front of a last newline."""
        asked = []
        for name in {tail, tail.removesuffix("\n")}:
            asked += [(self._whole, name), (self._names, name)]
            dots = [at + 1 for at, letter in enumerate(name) if letter == "." and "\n" not in name[:at]]
            asked += [(self._names, name[at:]) for at in dots]
        return asked


def _plain(text: str) -> str | None:
    """Return the name that a pattern is, with everything special in it escaped; None for another expression."""
    name = re.sub(r"\\([^a-zA-Z0-9])", r"\1", text, flags=re.DOTALL)
    escaped = re.sub(r"\\([^a-zA-Z0-9])", "", text, flags=re.DOTALL)
    return None if _SPECIAL & set(escaped) else name


def bounded(text: str) -> re.Pattern[str] | None:
    """Return an expression that ends soon on any name of ``MODULE`` characters; None for any other, and for none."""
    try:
        return None if len(text) > PATTERN or _is_long(text) else re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None


def _is_long(text: str) -> bool:
    plain = re.sub(r"\\.", "", text)
    often = sum(map(plain.count, "*+{")) > REPEATS or sum(map(plain.count, "?|")) > CHOICES
    return often or re.search(r"\)[*+{?]", plain) is not None


def _compiled(text: str) -> re.Pattern[str]:
    if _is_long(text):
        raise ValueError(f"the pattern {brief_repr(text)} repeats too much")
    return re.compile(ENDS.format(text))  # as it is used: flags, and groups that are closed too early, are faults there
