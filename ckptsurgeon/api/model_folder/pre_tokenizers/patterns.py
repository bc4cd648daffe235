"""Translates regular expressions in a tokenizer.json to Python's, for use with short ASCII texts.

The library tokenizers reads the expressions with Oniguruma (https://github.com/kkos/oniguruma/blob/master/doc/RE). They
come from an untrusted file, so an expression that could take long is refused: one that repeats a group, or that has
many repeats in one alternative.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

__all__ = ["CONTRACTIONS", "PUNCTUATION", "SPACE_MARKS", "translated"]

SPACE_MARKS = "Ġ▁"
"""The characters that replace a space in the tokens of byte-level BPE and of sentencepiece."""
CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The regular expression of GPT-2. ByteLevel splits texts with it, unless ``use_regex`` is false."""
PUNCTUATION = r"!-/:-@\[-`{-~"
"""All ASCII punctuation and symbols, as the content of a character class."""
LONGEST, MOST_REPEATS, MOST_BRANCHES = 10_000, 5, 32
"""Limits of expressions that are translated: their length, repeats in one alternative, and number of alternatives.

The expressions of published tokenisers have up to 4 repeats and 12 alternatives.
"""
_KEPT = frozenset("sSdDwWbrntfv")
"""The letters whose escapes mean the same in Python's regular expressions."""
_OTHER = "\x80"
"""A character that no text has. It represents all other characters of a Unicode property, so no set is empty."""
_PROPERTY = re.compile(r"\\([pP])(?:\{(\^?)([A-Za-z]{1,2})\}|([LMNPSZC]))")
_GROUP = re.compile(r"\((?:\?(?:i?:|[!=>]|<[!=]))?")
_REPEAT = re.compile(r"(?:[*+?]|\{\d{0,3},?\d{0,3}\})[+?]?")
_CATEGORIES = frozenset("LMNPSZC")


def translated(expression: str) -> re.Pattern[str] | None:
    """Return a regular expression of a tokenizer.json as one of Python; None if it cannot be translated or is refused.

    Both expressions match the same parts of short texts of ASCII characters and ``SPACE_MARKS``. An expression is
    refused if matching it could take long.
    """
    if len(expression) > LONGEST:
        return None
    try:
        return re.compile(_Translation(expression).result())
    except (ValueError, RecursionError, OverflowError, re.error):
        return None


class _Translation:
    def __init__(self, expression: str) -> None:
        self.text, self.at, self.parts = expression, 0, list[str]()
        self.repeats, self.branches = 0, 1

    def result(self) -> str:
        """Return the translated expression as text; raises ValueError if it cannot be translated or is refused."""
        while self.at < len(self.text):
            self._next()
            if self.repeats > MOST_REPEATS or self.branches > MOST_BRANCHES:
                raise ValueError("too many repeats")
        return "".join(self.parts)

    def _next(self) -> None:
        sign = self.text[self.at]
        if sign == "\\":
            self.parts.append(self._escape(is_in_set=False))
            self._repeat()
        elif sign == "[":
            self._set()
            self._repeat()
        elif sign == "(":
            found = _GROUP.match(self.text, self.at)
            if found is None or (self.text.startswith("(?", self.at) and found.group() == "("):
                raise ValueError("unknown group")
            self._take(found.group() if found.group() != "(" else "(?:", len(found.group()))
        elif sign == ")":
            self._take(sign)
            if self.text[self.at : self.at + 1] in ("*", "+", "{"):
                raise ValueError("a repeated group")
            self._repeat()
        elif sign == "|":
            self.repeats, self.branches = 0, self.branches + 1
            self._take(sign)
        elif sign in "*+?{}]":
            raise ValueError("a sign without its part")
        else:
            self._take(sign)
            self._repeat()

    def _take(self, part: str, length: int = 1) -> None:
        self.parts.append(part)
        self.at += length

    def _repeat(self) -> None:
        found = _REPEAT.match(self.text, self.at)
        if found is not None:
            self.repeats += 1
            self._take(found.group(), len(found.group()))

    def _escape(self, *, is_in_set: bool) -> str:
        found = _PROPERTY.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
            members = _members(found[3] or found[4], (found[1] == "P") != bool(found[2]))
            return members if is_in_set else f"[{members}]"
        sign = self.text[self.at + 1 : self.at + 2]
        if not sign or (sign.isalnum() and sign not in _KEPT) or (is_in_set and sign == "b"):
            raise ValueError("unknown escape")
        self.at += 2
        return f"\\{sign}"

    def _set(self) -> None:
        begin = "[^" if self.text.startswith("[^", self.at) else "["
        self._take(begin, len(begin))
        if self.text[self.at : self.at + 1] == "]":
            raise ValueError("an empty set")
        while (sign := self.text[self.at : self.at + 1]) != "]":
            if sign in ("", "[") or self.text.startswith("&&", self.at):
                raise ValueError("a set of sets")
            if sign == "\\":
                self.parts.append(self._escape(is_in_set=True))
            else:
                self._take(f"\\{sign}" if sign in "&|~^" else sign)
        self._take("]")


@cache
def _members(category: str, is_other: bool) -> str:
    """Return the ASCII characters and space marks in a Unicode category (``L``, ``Lu``); all others if ``is_other``.

    Raises ValueError for the name of an unknown category.
    """
    if category[0] not in _CATEGORIES:
        raise ValueError("unknown property")
    signs = [*map(chr, range(128)), *SPACE_MARKS]
    found = [one for one in signs if unicodedata.category(one).startswith(category) != is_other]
    return re.escape("".join((*found, _OTHER))).replace("\\\x80", _OTHER)
