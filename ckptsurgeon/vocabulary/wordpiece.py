"""WordPiece, as BERT has it: a word is cut greedily, and pieces inside of it begin with a mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .vocabulary import Vocabulary

__all__ = ["INSIDE", "greedy", "marked"]

INSIDE = "##"
_UNKNOWN = "[UNK]"


def marked(vocabulary: Vocabulary) -> Vocabulary:
    """Return a list that does not say its kind, as WordPiece where it is: BERT's vocab.txt."""
    tokens = vocabulary.tokens
    is_wordpiece = _UNKNOWN in tokens and any(token.startswith(INSIDE) and token.strip("#") for token in tokens)
    return replace(vocabulary, inside=INSIDE) if is_wordpiece else vocabulary


def greedy(token: str, rows: Mapping[str, int], inside: str, longest: int) -> tuple[int, ...]:
    """Return the rows of the pieces of a token, the longest first piece first; none where one is missing.

    A token that itself begins with the mark stands inside a word: all its pieces do. ``[MASK]`` and such stay whole.
    """
    if token[0] == "[" and token[-1] == "]":
        return ()
    begin = len(inside) if token.startswith(inside) and len(token) > len(inside) else 0
    found: list[int] = []
    while begin < len(token):
        mark = inside if begin else ""
        ends = range(min(len(token), begin + longest), begin, -1)
        end = next((end for end in ends if mark + token[begin:end] in rows), None)
        if end is None:
            return ()
        found.append(rows[mark + token[begin:end]])
        begin = end
    return tuple(found)
