"""Key patterns: match keys, and capture parts of them.

    pattern  = "re:" regex | segment { "." segment }
    segment  = "**" | { literal | "*" | "?" | "[" class "]" | "{" list, range or name "}" }

A pattern that matches a module matches all its keys: ``decoder`` matches ``decoder.weight``, never ``decoder2.weight``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from ...errors import PatternError
from ...util.text import escape
from .pattern_parser import DOUBLE, Segment, Token, parse_segments
from .spelling import undotted, without_dots

__all__ = ["IN_RANGE", "Captures", "KeyPattern", "OptionPattern", "with_equals"]


@dataclass(frozen=True)
class Captures:
    """The captures of a pattern in one key.

    ``ordered`` holds all captures in their order. ``stars`` holds the captures of ``*``, ``doubles`` the captures of
    ``**``, and ``named`` the captures of ``{n}`` (or of named groups). ``rest`` is the part of the key after the match,
    as in ``.weight``.
    """

    ordered: tuple[str, ...] = ()
    stars: tuple[str, ...] = ()
    doubles: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    rest: str = ""


IN_RANGE = "number_in_the_range"
"""The name of a capture that stands for a range in a pattern."""
MAX_CHARACTERS = 100_000
"""The longest pattern, in characters: thousands of names fit into it. Without a limit, matching may never end."""


class KeyPattern:
    """A parsed key pattern; raises PatternError if the text is not a valid pattern."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise PatternError(f"a pattern has {len(text)} characters, more than the limit of {MAX_CHARACTERS}.")
        self.text = text
        self.expression: re.Pattern[str] | None = None
        self.segments: tuple[Segment, ...] = ()
        if text.startswith("re:"):
            self.expression = _compiled(text)
        elif text:
            self.segments = parse_segments(text)
        else:
            raise PatternError("a pattern is empty.", hint="Write a key or a module, or ** for every key.")

    @classmethod
    def given(cls, text: str, before: str, behind: str = "") -> KeyPattern:
        """Return the pattern ``text``; ``before`` and ``behind`` are the words around it, such as ``--map``, ``=TO``.

        Raises PatternError if the pattern is not valid. If it would be valid without a superfluous dot, the hint shows
        the corrected pattern with the text around it.
        """
        try:
            return cls(text)
        except PatternError as error:
            meant = undotted(text)
            if text.startswith("re:") or meant == text or not _is_pattern(meant):
                raise
            raise PatternError(error.message, hint=without_dots(text, before, behind)) from None

    def __repr__(self) -> str:
        return f"KeyPattern({self.text!r})"

    @property
    def is_anchored(self) -> bool:
        """Whether the pattern can only match from the start of a key."""
        return bool(self.segments) and self.segments[0] is not DOUBLE

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the captures, in order: ``star`` for ``*``, ``double`` for ``**``, ``n`` for ``{n}``.

        A name that occurs several times is listed once. In a regular expression, a group without a name is a ``star``.
        """
        if self.expression is not None:
            names = {index: name for name, index in self.expression.groupindex.items()}
            return tuple(names.get(i, "star") for i in range(1, self.expression.groups + 1))
        found: list[str] = []
        for segment in self.segments:
            if segment is DOUBLE:
                found.append("double")
            for token in segment.tokens:
                if token.kind == "star" or (token.kind == "number" and token.name not in found):
                    found.append(token.name or "star")
        return tuple(found)

    @cached_property
    def by_segment(self) -> bool:
        """Whether the pattern can be matched with the segments of a key one by one.

        This is not possible if the same ``{n}`` occurs twice, or if a word contains a literal dot (escaped, or
        ``{a.b,c}``) and so spans several segments.
        """
        tokens = [token for segment in self.segments for token in segment.tokens]
        names = [token.name for token in tokens if token.name]
        dotted = any("." in word for token in tokens for word in token.words)
        return bool(self.segments) and len(names) == len(set(names)) and not dotted

    @cached_property
    def literal(self) -> str:
        """The only key or module that the pattern matches; "" if it has a wildcard or a list."""
        tokens = [token for segment in self.segments for token in segment.tokens]
        is_open = any(segment is DOUBLE for segment in self.segments) or any(token.kind != "text" for token in tokens)
        if is_open or not self.by_segment:
            return ""
        return ".".join("".join(token.words[0] for token in segment.tokens) for segment in self.segments)

    @cached_property
    def plain_texts(self) -> tuple[str, ...]:
        """The texts between the wildcards of the pattern; each key that it matches contains all of them."""
        runs = groupby(self.segments, lambda segment: bool(segment.only_word))
        return tuple(".".join(segment.only_word for segment in run) for is_plain, run in runs if is_plain)

    def alternatives(self) -> Iterator[tuple[str, KeyPattern]]:
        """Yield each word in the pattern's lists, and the pattern with only that word in place of the list.

        For ``a.{b,c}`` it yields ``b`` with ``a.b`` and ``c`` with ``a.c``.
        """
        for at, segment in enumerate(self.segments):
            for place, token in enumerate(segment.tokens):
                for word in token.words if token.kind == "choice" and token.is_list else ():
                    tokens = (*segment.tokens[:place], replace(token, words=(word,)), *segment.tokens[place + 1 :])
                    yield word, self._with(at, Segment(segment.text, tokens))

    def ranges(self) -> Iterator[tuple[Sequence[str], KeyPattern]]:
        """Yield the numbers of each range in the pattern, and the pattern that captures them as ``IN_RANGE``.

        For ``a.{0..2}`` it yields 0, 1 and 2, and a pattern that matches ``a`` with any number.
        """
        for at, segment in enumerate(self.segments):
            for place, token in enumerate(segment.tokens):
                if token.kind == "choice" and not token.is_list:
                    number = Token("number", name=IN_RANGE)
                    tokens = (*segment.tokens[:place], number, *segment.tokens[place + 1 :])
                    yield token.words, self._with(at, Segment(segment.text, tokens))

    def _with(self, at: int, segment: Segment) -> KeyPattern:
        """Return this pattern with another segment in the place ``at``."""
        other = KeyPattern(self.text)
        other.segments = (*self.segments[:at], segment, *self.segments[at + 1 :])
        return other

    def matches(self, key: str) -> bool:
        """Return whether ``key``, or a module that contains it, matches."""
        return self.captures(key) is not None

    def captures(self, key: str) -> Captures | None:
        """Return the parts of ``key`` that the pattern's wildcards match, None if the pattern does not match.

        The pattern matches the longest possible part of the key, from its start to a dot or its end. Within that part,
        each earlier wildcard matches as little as possible. A regular expression has to match the whole key.
        """
        if self.expression is not None:
            found = self.expression.fullmatch(key)
            return self._caught(found, "") if found else None
        if text := self.literal:
            return Captures(rest=key[len(text) :]) if key == text or key.startswith(f"{text}.") else None
        dotted, end = "." + key, len(key) + 1
        while end > 0:
            found = self._dotted.fullmatch(dotted, 0, end)
            if found is not None:
                return self._caught(found, dotted[end:])
            end = dotted.rfind(".", 0, end)
        return None

    @cached_property
    def _dotted(self) -> re.Pattern[str]:
        """The pattern as a regular expression for a key with a dot put before it.

        The dot makes all segments alike: each one begins with a dot. So ``**`` can also match no segment.
        """
        seen: set[str] = set()
        parts = []
        for segment in self.segments:
            inside = "".join(token.regex(seen) for token in segment.tokens)
            parts.append(r"((?:\.[^.]*)*?)" if segment is DOUBLE else rf"\.{inside}")
        return re.compile("".join(parts), re.DOTALL)

    def _caught(self, found: re.Match[str], rest: str) -> Captures:
        pairs = [
            (kind, (text or "").removeprefix(".") if kind == "double" else text or "")
            for kind, text in zip(self.kinds, found.groups(), strict=True)
        ]
        return Captures(
            ordered=tuple(text for _, text in pairs),
            stars=tuple(text for kind, text in pairs if kind == "star"),
            doubles=tuple(text for kind, text in pairs if kind == "double"),
            named={kind: text for kind, text in pairs if kind not in ("star", "double")},
            rest=rest,
        )


def _is_pattern(text: str) -> bool:
    try:
        KeyPattern(text)
    except PatternError:
        return False
    return True


def _compiled(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():  # re warns of "[[a]", which may mean something else in a later Python
            warnings.simplefilter("ignore")
            return re.compile(text.removeprefix("re:"))
    except RecursionError as error:
        raise PatternError(f"{text} is not a regular expression: its groups are nested too deeply.") from error
    except (re.error, ValueError, OverflowError) as error:
        raise PatternError(f"{text} is not a regular expression: {error}.") from error


# A key pattern and its option, for messages.


@dataclass(frozen=True)
class OptionPattern:
    """A pattern and the option that it belongs to; messages show both: ``--exclude decoder``."""

    option: str
    pattern: KeyPattern

    @staticmethod
    def of(option: str, text: str, behind: str = "") -> OptionPattern:
        """Return the pattern ``text`` with its option; raises PatternError if it is not valid.

        ``behind`` is the text after the pattern on the command line, such as ``=init``; the error's hint repeats it.
        """
        return OptionPattern(option, KeyPattern.given(text, f"{option} ", behind))

    def __str__(self) -> str:
        return f"{self.option} {self.pattern.text}"


def with_equals(text: str, policies: Sequence[str]) -> str:
    """Return a hint if ``text`` has ":" in place of "=", as in ``head:init`` for ``head=init``; else ''.

    ``policies`` are the names that may follow the "=".
    """
    named = "|".join(map(re.escape, policies))
    found = re.fullmatch(rf"(.+?):((?:{named})(?::.*)?)", text, re.DOTALL)
    return f"Did you mean {escape(f'{found[1]}={found[2]}')}?" if found else ""
