"""Parses the text of a key pattern into segments, the parts between the dots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product
from math import prod

from fnmatch2 import fnmatchcase2

from ...errors import PatternError

__all__ = ["DOUBLE", "Segment", "Token", "parse_segments"]

# One segment of a key pattern, the part between two dots: its tokens, and the text that they match.

INTEGER = "0|[1-9][0-9]*"

# fnmatch2 splits at "/" and "\", and the other characters are special in fnmatch. In a key they are ordinary
# characters, so private-use characters replace them, both in the pattern and in the key.
_AWKWARD = "/\\*?[]!^-&~|"
_SHIELD = str.maketrans({char: chr(0xE000 + i) for i, char in enumerate(_AWKWARD)})
_SHIELDS = frozenset(_SHIELD.values())


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a segment: literal text, a list or a wildcard.

    ``kind`` is one of:
    ``text``: literal text, the only item of ``words``;
    ``choice``: one of ``words``, from a list such as {a,b} or, if ``is_list`` is false, from a range such as {0..3};
    ``star``: ``*``;  ``one``: ``?``;
    ``class``: a character in one of ``ranges``, as in [a-c], or in none of them if ``negated``;
    ``number``: a number captured under ``name``, as in {n}.
    """

    kind: str
    words: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False
    name: str = ""
    is_list: bool = False

    @property
    def globs(self) -> tuple[str, ...]:
        """The token in fnmatch's syntax, one string for each alternative.

        Characters that are special in fnmatch are replaced by private-use characters, as ``_SHIELD`` maps them.
        """
        if self.kind in ("text", "choice"):
            return tuple(word.translate(_SHIELD) for word in self.words)
        if self.kind == "class":
            return (f"[{'!' if self.negated else ''}{''.join(_members(self.ranges))}]",)
        return ("*" if self.kind == "star" else "?",)

    @property
    def meets_shields(self) -> bool:
        """Whether the token may match one of the private-use characters that ``_SHIELD`` inserts."""
        spelled = any(not _SHIELDS.isdisjoint(word) for word in self.words)
        return spelled or any(low <= char <= high for low, high in self.ranges for char in _SHIELDS)

    def regex(self, seen: set[str]) -> str:
        """Return the token as a regular expression.

        A token may be a named number, such as ``{layer}``. ``seen`` contains the names that earlier tokens use; this
        token's name is added. If ``seen`` contains it already, the token only matches the number that the earlier
        token matched.
        """
        if self.kind == "text":
            return re.escape(self.words[0])  # groups would make the expression slow to compile: each letter is a token
        if self.kind == "choice":
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
    """Return the inside of a character class, as in [a-c], in fnmatch's syntax.

    Characters that are special in fnmatch are replaced by ``_SHIELD``, also those inside a range.
    """
    members = []
    for low, high in ranges:
        if low == high:
            members.append(low.translate(_SHIELD))
            continue
        members += [char.translate(_SHIELD) for char in _AWKWARD if low <= char <= high]
        # A replaced character cannot end a range, so the end moves to the nearest other character in the range.
        span = range(ord(low), ord(high) + 1)
        first = next((chr(c) for c in span if chr(c) not in _AWKWARD), None)
        last = next((chr(c) for c in reversed(span) if chr(c) not in _AWKWARD), None)
        if first and last:
            members.append(f"{first}-{last}")
    return members


@dataclass(frozen=True)
class Segment:
    """The part of a pattern between two dots: its text, and the pieces (``tokens``) that the text consists of."""

    text: str
    tokens: tuple[Token, ...]

    @cached_property
    def _words(self) -> frozenset[str]:
        """All strings that the segment matches; empty if it has a wildcard."""
        if any(token.kind not in ("text", "choice") for token in self.tokens):
            return frozenset()
        return frozenset("".join(parts) for parts in product(*(token.words for token in self.tokens)))

    @cached_property
    def only_word(self) -> str:
        """The only string that the segment matches; '' if it may match several."""
        is_text = all(token.kind == "text" for token in self.tokens)
        return "".join(token.words[0] for token in self.tokens) if is_text else ""

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return tuple("".join(parts) for parts in product(*(token.globs for token in self.tokens)))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        seen: set[str] = set()
        return re.compile("".join(token.regex(seen) for token in self.tokens), re.DOTALL)

    @cached_property
    def _beyond_fnmatch(self) -> bool:
        """Whether the segment needs a regular expression, because fnmatch cannot match it.

        This is so if the segment captures a number, or if it may match one of the private-use characters in
        ``_SHIELDS``.
        """
        return any(token.kind == "number" or token.meets_shields for token in self.tokens)

    def matches(self, text: str) -> bool:
        """Return whether the segment matches ``text``, the part of a key between two dots."""
        if self._words:
            return text in self._words
        if self._beyond_fnmatch or not _SHIELDS.isdisjoint(text):
            return self._regex.fullmatch(text) is not None
        shielded = text.translate(_SHIELD)
        return any(fnmatchcase2(shielded, glob) for glob in self._globs)


DOUBLE = Segment("**", ())
"""The segment that matches any number of segments, including none."""


# The parser: text to segments.

MAX_ALTERNATIVES = 10_000
"""The most alternatives that the braces of one segment may have."""

LONG = 64
"""Segments with more characters than this are not cached."""
_CLOSES = {"[": "]", "{": "}"}


def parse_segments(text: str) -> tuple[Segment, ...]:
    """Return the segments of a pattern; raises PatternError if the text is not a pattern."""
    return tuple(_common(part) or _segment(text, part) for part in _split(text))


@lru_cache(1024)
def _common(part: str) -> Segment | None:
    """Return the cached segment for a text; None for texts that are not cached: long ones, lists, ranges, errors.

    Lists and ranges would take much memory: they have up to ``MAX_ALTERNATIVES`` words.
    """
    if len(part) > LONG or "," in part or ".." in part:
        return None
    try:
        return _segment(part, part)
    except PatternError:  # the error has to quote the whole pattern
        return None


def _fail(text: str, why: str, hint: str = "") -> PatternError:
    return PatternError(f"pattern {text!r}: {why}.", hint=hint)


def _split(text: str) -> Iterator[str]:
    """Yield the raw text of each segment; a dot in brackets or braces, or after a backslash, does not end a segment."""
    start = at = 0
    while at < len(text):
        char = text[at]
        if char == ".":
            yield text[start:at]
            start = at = at + 1
        elif char in _CLOSES:
            at = _closing(text, at) + 1
        else:
            at += 2 if char == "\\" else 1
    yield text[start:]


def _closing(text: str, opened: int) -> int:
    """Return the index of the bracket or brace that closes the one at the index ``opened``.

    A "]" right after "[" or "[!" does not close the class, but is a member of it. Raises PatternError if there is none.
    """
    close = _CLOSES[text[opened]]
    at = opened + 1
    if close == "]":
        at += text[at : at + 1] == "!"
        at += text[at : at + 1] == "]"
    while at < len(text) and text[at] != close:
        at += 2 if text[at] == "\\" else 1
    if at >= len(text):
        raise _fail(text, f"{text[opened]!r} is never closed", f"Write \\{text[opened]} for the character.")
    return at


def _segment(text: str, part: str) -> Segment:
    if part == "**":
        return DOUBLE
    if not part:
        raise _fail(text, "it has an empty segment", "Write no dot at the ends and no two in a row.")
    tokens = tuple(_tokens(text, part))
    if any(a.kind == b.kind == "star" for a, b in pairwise(tokens)):
        raise _fail(text, '"**" must be a whole segment', "Use * inside a segment.")
    if prod(len(token.words) or 1 for token in tokens) > MAX_ALTERNATIVES:
        raise _fail(text, f"{part} expands to more than {MAX_ALTERNATIVES} names", "Use {n} for any number.")
    return Segment(part, tokens)


def _tokens(text: str, part: str) -> Iterator[Token]:
    at = 0
    while at < len(part):
        char = part[at]
        if char in _CLOSES:
            end = _closing(part, at)
            raw = part[at + 1 : end]
            yield _class(text, raw) if char == "[" else _brace(text, raw)
            at = end + 1
            continue
        if char in "]}":
            raise _fail(text, f"{char!r} closes nothing", f"Write \\{char} for the character itself.")
        if char == "\\":
            at += 1
            if at == len(part):
                raise _fail(text, "it ends in a backslash", "Write \\\\ for the character itself.")
            yield Token("text", (part[at],))
        else:
            yield Token({"*": "star", "?": "one"}.get(char, "text"), (char,) if char not in "*?" else ())
        at += 1


def _class(text: str, raw: str) -> Token:
    negated = raw.startswith("!")
    pieces = re.findall(r"\\.|.", raw[1:] if negated else raw, re.DOTALL)
    ranges, at = [], 0
    while at < len(pieces):
        span = at + 2 < len(pieces) and pieces[at + 1] == "-"
        low, high = pieces[at][-1], pieces[at + 2 if span else at][-1]
        if low > high:
            raise _fail(text, f"the class [{raw}] has a reversed range")
        ranges.append((low, high))
        at += 3 if span else 1
    if not ranges:
        raise _fail(text, f"the class [{raw}] is empty")
    return Token("class", ranges=tuple(ranges), negated=negated)


def _brace(text: str, raw: str) -> Token:
    numbers = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", raw)
    if numbers:
        low, high = int(numbers[1]), int(numbers[2])
        if low > high:
            raise _fail(text, f"the range {{{raw}}} is reversed")
        if high - low >= MAX_ALTERNATIVES:
            raise _fail(text, f"{{{raw}}} expands to more than {MAX_ALTERNATIVES} names", "Use {n}.")
        return Token("choice", tuple(map(str, range(low, high + 1))))
    words = _words(raw)
    if len(words) > 1:
        for word in words:
            _check_word(text, word)
        plain = ("".join(p[-1] for p in re.findall(r"\\.|.", word, re.DOTALL)) for word in words)
        return Token("choice", tuple(dict.fromkeys(plain)), is_list=True)
    if raw.isascii() and raw.isidentifier():
        return Token("number", name=raw)
    if re.fullmatch(r"[A-Za-z0-9_+*/% -]+", raw) and re.search("[A-Za-z]", raw):
        raise _fail(
            text,
            f"{{{raw}}} is arithmetic, which only a target may contain",
            "Capture the number with {n}, compute with it in the target, and leave layers out with --exclude.",
        )
    raise _fail(
        text,
        f"{{{raw}}} is neither a list {{a,b}}, a range {{0..11}} nor a name {{n}}",
        "Write \\{ for the character itself.",
    )


def _check_word(text: str, word: str) -> None:
    """Raise PatternError if ``word``, from a list in the pattern ``text``, has pattern syntax: words are literal."""
    plain = re.sub(r"\\.", "x", word, flags=re.DOTALL)
    found = re.search(r"\*+|[?\[\]{]", plain)
    if found:
        raise _fail(
            text,
            f"{found[0]!r} is in a list, whose words are literal text",
            f"Write a pattern for each word of the list, or \\{found[0][0]} for the character.",
        )
    if word.startswith("re:"):
        raise _fail(text, "re: is inside a list, but can only begin a whole pattern", "Write \\re: for the characters.")
    if re.fullmatch(r"[0-9]+\.\.[0-9]+", word):
        raise _fail(text, f"{word} in a list is not a range", "Write each number: {0,1,2,5}.")
    if ".." in plain:
        raise _fail(text, f"{word} in a list has an empty segment", "Write no two dots in a row.")


def _words(raw: str) -> list[str]:
    """Return the words of a list, split at its commas except those after a backslash; backslashes stay."""
    words = [""]
    for piece in re.findall(r"\\.|.", raw, re.DOTALL):
        if piece == ",":
            words.append("")
        else:
            words[-1] += piece
    return words
