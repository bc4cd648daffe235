"""Cuts a token into pieces that a vocabulary has."""

from __future__ import annotations

import math

from .vocabulary import Vocabulary
from .wordpiece import greedy

__all__ = ["Pieces"]

_LONGEST = 512
"""Characters of a token that is cut; what is longer is no word."""


class Pieces:
    """The pieces of a vocabulary, and their log-probabilities where it has them.

    With them a token is cut as a unigram model cuts it, most probably first (Kudo, arXiv:1804.10959); WordPiece cuts
    the longest piece first; others are cut into as few pieces as there can be.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._rows = {token: row for row, token in enumerate(vocabulary.tokens) if token}
        self._scores = vocabulary.scores
        self._inside = vocabulary.inside
        self._longest = max(map(len, self._rows), default=0)

    def cut(self, token: str) -> tuple[int, ...]:
        """Return the rows of the pieces of a token, none where it cannot be cut."""
        if not token or len(token) > _LONGEST or (token[0] == "<" and token[-1] == ">"):
            return ()
        if self._inside:
            return greedy(token, self._rows, self._inside, self._longest)
        best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *(None for _ in token)]
        for end in range(1, len(token) + 1):
            for begin in range(max(0, end - self._longest), end):
                before, row = best[begin], self._rows.get(token[begin:end])
                if before is None or row is None:
                    continue
                score = before[0] + (self._scores[row] if self._scores else -1.0)
                here = best[end]
                if score > (here[0] if here is not None else -math.inf):
                    best[end] = (score, (*before[1], row))
        found = best[-1]
        return found[1] if found is not None else ()
