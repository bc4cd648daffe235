"""Compiles regular expressions, and names with wildcards, from settings, which are untrusted: only safe ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

__all__ = [
    "LONGEST", "MOST", "REPEATED", "expression_of", "expressions_of", "is_valid", "repeated", "with_wildcards",
    "words_of",
]  # fmt: skip

_PLAIN = re.compile(
    r"(?:\(\?i\))?\^?(?:[\w\-/]|\\b|(?:\\[.d\-_]|\.|\[\^?[\w\-.]+\])(?:[*+]|\{\d(?:,\d)?\})?\??"
    r"|\((?:\?[:=!])?(?:[\w|.\\\-]|\[[\w\-]+\])+\)\??)*\$?"
)
"""Matches the regular expressions that are safe to evaluate, since they repeat no group."""
_COSTLY = re.compile(r"[^\x00-\x7f]|\\[xuUN0-9]|\[\[|--|&&|~~|\|\|")
"""Matches texts that are not compiled: they may have long ranges of characters, or Python may warn of them."""
REPEATED, _GROUPED, LONGEST, MOST = 3, 2, 200, 200
"""Limits: unlimited repetitions, and groups, of an expression; length of an expression or name; entries of a list."""


def expressions_of(entries: Sequence[str], start: int = 0) -> dict[str, re.Pattern[str]]:
    """Return {entry: compiled regular expression}; the expression is the text of the entry from ``start`` on.

    Entries with an invalid expression, or with one that could take long to match, are left out.
    """
    found = {one: expression_of(one[start:]) for one in entries[:MOST]}
    return {one: pattern for one, pattern in found.items() if pattern is not None}


def repeated(text: str) -> int:
    """Return how many repetitions (``*``, ``+``, ``{1,2}``) a regular expression has, not counting one at its end."""
    text = text.removesuffix("$").removesuffix(".*")
    return text.count("*") + text.count("+") + text.count("{")


@cache
def words_of(text: str) -> tuple[str, ...]:
    """Return words that every name that matches a regular expression contains; () if it has alternatives or classes."""
    plain = re.sub(r"\\.", " ", text)
    return () if re.search(r"[(\[{?|]|[^.\s]\*", plain) else tuple(re.findall(r"\w+", plain))


def is_valid(text: str) -> bool:
    """Return whether a text may be a valid regular expression; loaders cannot use others, so those exclude nothing."""
    return len(text) > LONGEST or bool(_COSTLY.search(text)) or _compiled(text) is not None


def expression_of(text: str) -> re.Pattern[str] | None:
    """Return a compiled regular expression; None if it is not valid or could take long to compile or to match."""
    is_short = len(text) <= LONGEST and text.count("(") <= _GROUPED
    if not is_short or repeated(text) > REPEATED or not _PLAIN.fullmatch(text) or _COSTLY.search(text):
        return None
    return _compiled(text)


def _compiled(text: str) -> re.Pattern[str] | None:
    """Return a compiled regular expression; None if it is not valid."""
    try:
        return re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError):  # ValueError: flags that contradict each other
        return None


def with_wildcards(entry: str) -> str:
    """Return a regular expression for a name with wildcards, and for the names of its submodules."""
    text = re.escape(entry).replace(r"\*", ".*").replace(r"\?", ".")
    return rf"{text}(?:\..*)?"
