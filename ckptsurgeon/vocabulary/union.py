"""Joins the vocabularies of several models. For a token that a model lacks, the row of another model may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..planning.plan.rows import Row, VocabularyRows
from .vocabulary import Vocabulary

__all__ = ["TokenRowOverride", "rows_in", "united", "with_overrides", "with_padding"]


def united(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Return the tokens of all vocabularies: the tokens of the first, then the new tokens of the second, and so on."""
    tokens = dict.fromkeys(token for one in vocabularies for token in one.tokens)
    return Vocabulary("union", tuple(tokens))


def rows_in(vocabulary: Vocabulary, output: Vocabulary, *, size: int, new: str = "others") -> VocabularyRows:
    """Return the row that a model has for each token of the output; None for a token that the model lacks.

    ``size`` is the number of rows of the model: tokens with an index of ``size`` or more have no row, and rows after
    the last token belong to no token. ``new`` is the way to fill missing rows, as in ``VocabularyRows``.
    """
    places = {token: row for row, token in enumerate(vocabulary.tokens[:size])}
    rows = tuple(places.get(token) for token in output.tokens)
    return VocabularyRows(vocabulary.name, output.name, size, rows, new)


# Rows that the user of a merge chooses for certain tokens, and padding rows, which belong to no token.


@dataclass(frozen=True)
class TokenRowOverride:
    """The row that a token of the output gets in models that lack the token: row ``row`` of the model ``model``.

    ``model`` is the model's index, and ``place`` is the token's row in the output. If ``model`` is None, the row is all
    zeros. If ``force`` is True, models that have the token get this row, too.
    """

    place: int
    model: int | None = None
    row: int = 0
    force: bool = False


def with_overrides(
    every: Sequence[VocabularyRows], overrides: Sequence[TokenRowOverride]
) -> tuple[VocabularyRows, ...]:
    """Return the rows of each model after the ``overrides`` are applied.

    ``every`` has the rows of each model, in the order of the models. A token has at most one override.
    """
    by_place = {one.place: one for one in overrides}
    return tuple(
        replace(
            rows,
            rows=tuple(_row(row, by_place.get(place)) for place, row in enumerate(rows.rows)),
            lent=tuple((one.place, one.row) for one in overrides if one.model == number),
        )
        for number, rows in enumerate(every)
    )


def _row(row: Row, override: TokenRowOverride | None) -> Row:
    """Return the row of a token in a model: ``row``, or the result of ``override`` if the override applies.

    An override applies if the model lacks the token (``row`` is None), or if ``override.force`` is true. Its result is
    None if the row of another model is used, and an empty tuple if the row is all zeros.
    """
    if override is None or (row is not None and not override.force):
        return row
    return None if override.model is not None else ()


def with_padding(every: Sequence[VocabularyRows], multiple: int) -> tuple[VocabularyRows, ...]:
    """Return the rows of each model with padding rows added, so that their number is a multiple of ``multiple``.

    ``every`` has the rows of each model, in the order of the models.
    """
    more = -len(every[0].rows) % multiple
    return tuple(replace(rows, rows=(*rows.rows, *(None,) * more), padded=more) for rows in every)
