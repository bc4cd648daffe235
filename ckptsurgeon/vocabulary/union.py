"""One vocabulary of several: the first one's tokens, then those of the others that are new."""

from __future__ import annotations

from collections.abc import Sequence

from ..planning.plan.rows import Rows
from .vocabulary import Vocabulary

__all__ = ["rows_in", "united"]


def united(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Return the tokens of all, in the order of the first, then of the next one's that are new, and so on."""
    tokens = dict.fromkeys(token for one in vocabularies for token in one.tokens)
    return Vocabulary("union", tuple(tokens))


def rows_in(vocabulary: Vocabulary, output: Vocabulary, *, size: int, new: str = "others") -> Rows:
    """Return which row of a model each token of the output's has, None where it lacks it.

    ``size`` is how many rows the model has: of a token beyond them there is none, and rows beyond the tokens are
    nobody's. ``new`` is what becomes of those that lack, as ``Rows`` has it.
    """
    places = {token: row for row, token in enumerate(vocabulary.tokens[:size])}
    rows = tuple(places.get(token) for token in output.tokens)
    return Rows(vocabulary.name, output.name, size, rows, new)
