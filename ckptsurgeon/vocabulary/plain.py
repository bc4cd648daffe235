"""Reads a text file with one token on each line, such as ESPnet's ``tokens.txt``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError
from ..util.text import brief_repr
from .vocabulary import Marks, Vocabulary, checked, marked

__all__ = ["VOCABULARY", "lines_of"]

WORDPIECE, _UNKNOWN = "vocab.txt", "[UNK]"
_NUMBERED = re.compile(r"(.+?)[ \t]+(0|[1-9][0-9]{0,17})")


def lines_of(name: str, data: bytes) -> list[str]:
    """Return the lines of a UTF-8 text, with any line endings; raises ConfigError if it is not UTF-8 or has NULs."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{name} is not a list of tokens: it is not UTF-8.",
            hint="Give a text file in UTF-8, with one token on each line.",
        ) from None
    if "\0" in text:
        raise ConfigError(
            f"{name} is not a list of tokens: it contains zero bytes, so it is not text.",
            hint="Give a text file in UTF-8, with one token on each line.",
        )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


class _Plain:
    marks: tuple[Marks, ...] = ()
    """No marks: this reader reads the files in which no other reader finds its marks."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the non-empty lines as tokens.

        If each line is ``token index`` (Kaldi's words.txt), the tokens are sorted by index. In a vocab.txt (BERT), an
        empty line before the last token is a token, too, as in transformers.
        """
        lines = lines_of(name, data)
        while lines and not lines[-1]:
            lines.pop()
        if name != WORDPIECE or _UNKNOWN not in lines:
            lines = [line for line in lines if line]
        found = [match for match in map(_NUMBERED.fullmatch, lines) if match is not None]
        if len(lines) > 1 and len(found) == len(lines):
            lines = _by_number(name, [(match[1], int(match[2])) for match in found])
        return marked(checked(name, lines))


def _by_number(name: str, pairs: Sequence[tuple[str, int]]) -> list[str]:
    """Return the tokens sorted by index, from 0 or 1 on; raises ConfigError if an index is missing or occurs twice."""
    tokens: dict[int, str] = {}
    hint = "If the numbers are parts of the tokens, give the list as a vocab.json."
    for token, number in pairs:
        if number in tokens:
            both = f"{brief_repr(tokens[number], 40)} and {brief_repr(token, 40)}"
            raise ConfigError(f"{name} has two tokens with the index {number}: {both}.", hint=hint)
        tokens[number] = token
    first = 0 if 0 in tokens else 1
    numbers = range(first, first + len(tokens))
    absent = next((number for number in numbers if number not in tokens), None)
    if absent is not None:
        raise ConfigError(f"{name} has {len(tokens)} tokens, but no token with the index {absent}.", hint=hint)
    return [tokens[number] for number in numbers]


VOCABULARY = _Plain()
