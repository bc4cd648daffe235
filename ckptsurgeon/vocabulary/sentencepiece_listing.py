"""Reads the ``.vocab`` file that sentencepiece writes beside a model: a piece, a tab and its score on each line."""

from __future__ import annotations

import re

from .vocabulary import HEAD, TAIL, Marks, Vocabulary, checked, lines_of

__all__ = ["VOCABULARY"]

_LINE = re.compile(r"([^\t]+)\t(-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)", re.ASCII)
_SPECIAL = re.compile(rb"^[^\t\r\n]+\t0\r?$", re.MULTILINE)
_NORMAL = re.compile(rb"^[^\t\r\n]+\t-[0-9.e+-]+\r?$", re.MULTILINE)


class _Listing:
    marks = (Marks(content=((_SPECIAL, HEAD), (_NORMAL, TAIL))),)
    """A piece near the beginning with the score 0, as special ones have, and one near the end with a lower score.

    So a list of tokens with their indices (Kaldi's words.txt) is not of this kind.
    """

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the pieces and their scores, in the order of the file; a line without a score gets the score 0."""
        lines = [line for line in lines_of(name, data) if line]
        found = [(match[1], float(match[2])) if (match := _LINE.fullmatch(line)) else (line, 0.0) for line in lines]
        return checked(name, [token for token, _ in found], [score for _, score in found])


VOCABULARY = _Listing()
