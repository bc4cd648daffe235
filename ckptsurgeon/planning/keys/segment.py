"""One dotted part of a key pattern: its tokens, and what text they match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from fnmatch2 import fnmatchcase2

__all__ = ["DOUBLE", "Segment", "Token"]

INTEGER = "0|[1-9][0-9]*"

# fnmatch2 splits at "/" and "\", and fnmatch gives these a meaning of its own. In a key they are letters like
# any other, so they are swapped for private-use characters, in the pattern and in the key alike.
_AWKWARD = "/\\*?[]!^-&~|"
_SHIELD = str.maketrans({char: chr(0xE000 + i) for i, char in enumerate(_AWKWARD)})
_SHIELDS = frozenset(_SHIELD.values())


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a segment.

    ``kind`` is ``text`` (``words``: the one literal), ``choice`` (``words``: the alternatives, ``is_list`` unless
    they are a range), ``star``, ``one``, ``class`` (``ranges``, ``negated``) or ``number`` (``name``).
    """

    kind: str
    words: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False
    name: str = ""
    is_list: bool = False

    @property
    def globs(self) -> tuple[str, ...]:
        """The token as fnmatch spells it, one entry for each alternative."""
        if self.kind in ("text", "choice"):
            return tuple(word.translate(_SHIELD) for word in self.words)
        if self.kind == "class":
            return (f"[{'!' if self.negated else ''}{''.join(_members(self.ranges))}]",)
        return ("*" if self.kind == "star" else "?",)

    @property
    def meets_shields(self) -> bool:
        """Whether a character that shields another is among those of the token."""
        spelled = any(not _SHIELDS.isdisjoint(word) for word in self.words)
        return spelled or any(low <= char <= high for low, high in self.ranges for char in _SHIELDS)

    def regex(self, seen: set[str]) -> str:
        """Return the token as a regular expression; a name already in ``seen`` must repeat its number."""
        if self.kind in ("text", "choice"):
            words = sorted(self.words, key=len, reverse=True)
            return f"(?:{'|'.join(map(re.escape, words))})"
        if self.kind == "class":
            inside = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in self.ranges)
            return f"(?!\\.)[{'^' if self.negated else ''}{inside}]"
        if self.kind == "number":
            again = self.name in seen
            seen.add(self.name)
            return f"(?P={self.name})" if again else f"(?P<{self.name}>{INTEGER})"
        return "([^.]*?)" if self.kind == "star" else "[^.]"


def _members(ranges: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the members of a class for fnmatch: a range keeps the shielded characters it spans."""
    members = []
    for low, high in ranges:
        if low == high:
            members.append(low.translate(_SHIELD))
            continue
        members += [char.translate(_SHIELD) for char in _AWKWARD if low <= char <= high]
        # The ends of a range must stay themselves; an awkward end moves to its nearest plain neighbour.
        span = range(ord(low), ord(high) + 1)
        first = next((chr(c) for c in span if chr(c) not in _AWKWARD), None)
        last = next((chr(c) for c in reversed(span) if chr(c) not in _AWKWARD), None)
        if first and last:
            members.append(f"{first}-{last}")
    return members


@dataclass(frozen=True)
class Segment:
    """One dotted part of a pattern, as written and as tokens."""

    text: str
    tokens: tuple[Token, ...]

    @cached_property
    def _words(self) -> frozenset[str]:
        """Every text the segment stands for, when it holds no wildcard."""
        if any(token.kind not in ("text", "choice") for token in self.tokens):
            return frozenset()
        return frozenset("".join(parts) for parts in product(*(token.words for token in self.tokens)))

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return tuple("".join(parts) for parts in product(*(token.globs for token in self.tokens)))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        seen: set[str] = set()
        return re.compile("".join(token.regex(seen) for token in self.tokens), re.DOTALL)

    @cached_property
    def _beyond_fnmatch(self) -> bool:
        """Whether the segment catches an integer, or speaks itself of the characters that shield others."""
        return any(token.kind == "number" or token.meets_shields for token in self.tokens)

    def matches(self, text: str) -> bool:
        """Whether one dotted part of a key matches."""
        if self._words:
            return text in self._words
        if self._beyond_fnmatch or not _SHIELDS.isdisjoint(text):
            return self._regex.fullmatch(text) is not None
        shielded = text.translate(_SHIELD)
        return any(fnmatchcase2(shielded, glob) for glob in self._globs)


DOUBLE = Segment("**", ())
"""The segment that stands for any number of segments, none included."""
