"""Rows of tokens that somebody chose for the models of a merge, and rows that are no token's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..planning.plan.rows import Row, Rows

__all__ = ["Lent", "with_lent", "with_padding"]


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
