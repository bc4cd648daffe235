"""What to say about a pattern that matches nothing, or less than was meant."""

from __future__ import annotations

import difflib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ..errors import PatternError
from ..text import count, escape
from .matcher import KeyMatcher
from .pattern import KeyPattern

__all__ = ["deeper_note", "nearest", "unmatched"]

_NUMBER = re.compile(r"\d+")

SUGGESTIONS = 3
CLEARLY_WORSE = 0.1
"""A suggestion this much less similar than the best one (difflib's ratio) is not made."""
CANDIDATES = 2000
LONGEST = 300
DEEPEST = 32
"""How many names are compared, how long they may be, and how many modules deep: difflib is slow, files are not."""
MANY_MORE = 4
"""A pattern gets a note when it would match this many times more keys deeper down."""


def unmatched(flag: str, pattern: KeyPattern, keys: Sequence[str], whose: str) -> PatternError:
    """Return the error for a pattern that matches none of ``keys``, naming up to three that are near.

    ``flag`` is how the user wrote it (``--exclude decodr``), ``whose`` says whose keys: "source", "destination".
    """
    head = f"{flag} matches none of the {count(len(keys), f'{whose} key')}."
    if pattern.is_anchored:
        deeper = _deeper(pattern, keys)
        if deeper:
            return PatternError(head, hint=f"Did you mean **.{pattern.text}? It matches {count(deeper, 'key')}.")
    near = nearest(pattern.text, keys)
    if not near:
        return PatternError(head, hint=f"The {whose} keys begin with {_beginnings(keys)}." if keys else "")
    words = [f"{escape(name)} ({count(number, 'key')})" for name, number in near]
    return PatternError(head, hint=f"Did you mean {' or '.join(words)}?")


def deeper_note(flag: str, pattern: KeyPattern, hits: int, keys: Sequence[str]) -> str:
    """Return a note when an anchored pattern matches few keys and far more deeper down, else ''."""
    if not pattern.is_anchored or hits == 0:
        return ""
    deeper = _deeper(pattern, keys)
    if deeper < MANY_MORE * hits:
        return ""
    return f"{flag} matches {count(hits, 'key')}; **.{pattern.text} would match {deeper}"


def _deeper(pattern: KeyPattern, keys: Sequence[str]) -> int:
    return len(KeyMatcher([KeyPattern(f"**.{pattern.text}")]).hits(keys)[0])


def _beginnings(keys: Iterable[str]) -> str:
    heads = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{escape(name)} ({number})" for name, number in heads.most_common(SUGGESTIONS))


def nearest(text: str, keys: Iterable[str]) -> list[tuple[str, int]]:
    """Return up to three keys or modules whose names are near ``text``, with the number of keys in each.

    Names that differ only in their numbers or in upper and lower case count as one: the first speaks for all.
    """
    sizes: Counter[str] = Counter()
    for key in keys:
        sizes.update(_modules(key))
    first: dict[str, str] = {}
    for module in sizes:
        first.setdefault(_plain(module), module)
    wanted = _plain(text)
    close = _close(wanted, first)
    if not close:
        tails = {module.rpartition(".")[2]: module for module in reversed(first)}
        close = [tails[tail] for tail in _close(wanted.rpartition(".")[2], tails)]
    return [(first[name], sizes[first[name]]) for name in close]


def _close(wanted: str, names: Iterable[str]) -> list[str]:
    """Return the names nearest to ``wanted``, without those clearly further off than the best."""
    likely = heapq.nsmallest(CANDIDATES, names, key=lambda name: _unlike(wanted, name))
    near = difflib.get_close_matches(wanted, likely, n=SUGGESTIONS, cutoff=0.6)
    ratio = {name: difflib.SequenceMatcher(None, wanted, name).ratio() for name in near}
    return [name for name in near if ratio[name] >= ratio[near[0]] - CLEARLY_WORSE]


def _unlike(wanted: str, name: str) -> int:
    """Return how far two names are apart, as far as their lengths, beginnings and ends tell, which is quick."""
    return abs(len(wanted) - len(name)) - _alike(wanted, name) - _alike(wanted[::-1], name[::-1])


def _alike(a: str, b: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _plain(name: str) -> str:
    return _NUMBER.sub("0", name).lower()


def _modules(key: str) -> Iterator[str]:
    """Yield the modules a key lies in, down to a depth, and the key itself unless nobody could have meant it."""
    end = key.find(".")
    for _ in range(DEEPEST):
        if not 0 <= end <= LONGEST:
            break
        yield key[:end]
        end = key.find(".", end + 1)
    if len(key) <= LONGEST:
        yield key
