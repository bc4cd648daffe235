"""One vocabulary of several models, and rows of single tokens that somebody chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..planning.plan.rows import Row, Rows
from .vocabulary import Vocabulary

__all__ = ["Lent", "rows_in", "united", "with_lent", "with_padding"]


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


# Rows of tokens that somebody chose for the models of a merge, and rows that are no token's.


@dataclass(frozen=True)
class Lent:
    """What models get at a place of the output: ``row`` of ``model``, by its number, or zeros where that is None.

    Those that have the token keep their own, unless by ``force``.
    """

    place: int
    model: int | None = None
    row: int = 0
    force: bool = False


def with_lent(every: Sequence[Rows], lent: Sequence[Lent]) -> tuple[Rows, ...]:
    """Return the rows of each model, with what is lent to them; a place is lent once."""
    by_place = {one.place: one for one in lent}
    return tuple(
        replace(
            rows,
            rows=tuple(_row(row, by_place.get(place)) for place, row in enumerate(rows.rows)),
            lent=tuple((one.place, one.row) for one in lent if one.model == number),
        )
        for number, rows in enumerate(every)
    )


def _row(row: Row, lent: Lent | None) -> Row:
    """Return the row that a model has for itself: none where another's is lent, that of no row for zeros."""
    if lent is None or (row is not None and not lent.force):
        return row
    return None if lent.model is not None else ()


def with_padding(every: Sequence[Rows], multiple: int) -> tuple[Rows, ...]:
    """Return the rows of each model with further ones that are no token's, until their number is a multiple."""
    more = -len(every[0].rows) % multiple
    return tuple(replace(rows, rows=(*rows.rows, *(None,) * more), padded=more) for rows in every)
