"""A command line as far as it was typed: the words before the cursor, and the one that is being typed."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Typed", "typed_in"]

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_ESCAPED_IN_QUOTES = '$`"\\\n'


@dataclass(frozen=True)
class Typed:
    """``words`` without the program's; ``current`` without quotes.

    ``kept`` is the beginning of ``current`` that the shell takes for another word and keeps (bash, up to an equals
    sign). ``plain``: it has no quotes and escapes, but perhaps a quote in front of all of it.
    """

    words: tuple[str, ...]
    current: str
    kept: str = ""
    plain: bool = True


def typed_in(shell: str, given: str) -> Typed | None:
    """Return what was typed; bash gives the line and its word breaks, the others the words and the current one."""
    fields = given.split("\0")[:-1]
    if shell == "bash" and len(fields) == 2:
        return _line(fields[0], fields[1])
    if shell in ("zsh", "fish") and len(fields) >= 2:
        *words, current = fields
        bare = current[1:] if current[:1] in ("'", '"') else current
        return Typed(tuple(words[1:]), bare, plain=not set(bare) & set("'\"\\"))
    return None


def _line(line: str, breaks: str) -> Typed | None:
    words = _lexed(line)
    while len(words) > 1 and _ASSIGNMENT.match(words[0].text):
        words = words[1:]
    if len(words) < 2:
        return None
    last = words[-1]
    kept = max((last.text.rfind(mark) + 1 for mark in breaks), default=0) if last.bare else 0
    return Typed(tuple(one.text for one in words[1:-1]), last.text, last.text[:kept], last.bare or last.opened)


@dataclass
class _Word:
    """A word as a shell reads it: ``bare`` without any quote, ``opened`` by a quote that still lasts."""

    text: str = ""
    bare: bool = True
    opened: bool = False


def _lexed(line: str) -> list[_Word]:
    """Return the words of a line by the shell's rules for quotes; the last is the one that is being typed."""
    words, begun, quote, i = [_Word()], False, "", 0
    while i < len(line):
        char, word = line[i], words[-1]
        i += 1
        if char == "\\" and quote != "'" and i < len(line):
            escaped = line[i] if not quote or line[i] in _ESCAPED_IN_QUOTES else f"\\{line[i]}"
            word.text, word.bare, word.opened, begun = word.text + escaped, False, False, True
            i += 1
        elif quote and char == quote:
            quote, word.opened = "", False
        elif quote:
            word.text += char
        elif char in "'\"":
            quote, word.opened, word.bare, begun = char, not begun, False, True
        elif not char.isspace():
            word.text, begun = word.text + char, True
        elif begun:
            words.append(_Word())
            begun = False
    return words
