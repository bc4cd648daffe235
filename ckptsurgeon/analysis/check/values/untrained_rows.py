"""Checks that the embedding rows of tokens were trained: few are zero, equal to another row, or very small."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np

from ....tensors.ops.regions import Array
from ....util.text import count, escape, listing
from ..check import Check
from ..measuring.measured import Rows
from ..report import Found, Status
from ..subject import Subject
from ._other_token_list import other_list

__all__ = ["CHECK"]

PADDING = 1
"""An embedding may have this many zero rows: the row of its padding token."""
SMALL = 0.1
"""A row counts as never trained if its root mean square is below this share of the median of non-zero rows."""
TRAINED = 0.5
"""A row without a token counts as trained if it is larger than this share of the median of rows with tokens."""
FEWEST, ERRORS, VARIED = 16, 4, 0.4
"""Limits for the sizes of rows without a token, which must vary more than the sizes of new rows.

There must be at least ``FEWEST`` such rows. Their relative deviation must exceed the deviation of new rows by
``ERRORS`` standard errors, and be more than ``VARIED`` times the relative deviation of rows with tokens.
"""
OTHER_ROWS = ("bark", "semantic", "coarse_acoustics", "whisper")
"""Model types with trained rows for which older tokenisers have no tokens: timestamps, codes of sound."""
OTHER_TOKENS = "Use the tokeniser that was saved with these weights: the present one seems to lack tokens."
ADVICE = (
    "The model gives unpredictable results for tokens of these rows: train these rows, or remove the tokens from the "
    "tokeniser."
)


def _run(subject: Subject) -> Iterator[Found]:
    for key in subject.embeddings:
        measured = subject.measured.get(key)
        if measured is None or measured.rows is None:
            continue
        width = subject.tensors[key].shape[1]
        yield from _without_token(key, measured.rows, subject.tokens, 0 if subject.kind in OTHER_ROWS else width)
        yield from other_list(key, measured.rows.squares, subject.names)
        zero, equal, small = (
            _without(rows, subject.padding) for rows in _untrained(measured.rows, subject.tokens, width)
        )
        if len(zero) <= PADDING:
            zero = zero[:0]
        found = {"zero": zero, "equal to others": equal, f"below {SMALL:g} of the median": small}
        told = [f"{len(rows):,} {what}" for what, rows in found.items() if len(rows)]
        if told:
            rows = sorted({*zero.tolist(), *equal.tolist(), *small.tolist()})
            named = listing([str(row) for row in rows[:1000]], 5, where="")
            said = f"{escape(key)} has {_rows(len(rows))} never trained ({', '.join(told)}): {named}"
            figures = {"rows": len(rows), "zero": len(zero), "equal": len(equal), "small": len(small)}
            yield Found(Status.WARN, said, ADVICE, (key,), figures=figures)


def _without_token(key: str, rows: Rows, tokens: int, width: int) -> Iterator[Found]:
    """Yield a finding on rows without a token that are as large as rows with a token; rows of padding should be small.

    If no rows are small, the rows without a token may be padding that was never trained. Then their sizes differ only
    by chance. ``width`` is the length of a row, or 0 if rows without a token are usual for the model.
    """
    sizes = np.sqrt(rows.squares)
    if not 0 < tokens < len(sizes):
        return
    usual, beyond = np.sort(sizes[:tokens])[tokens // 2], sizes[tokens:]
    if not 0 < usual < np.inf:
        return
    trained = [tokens + int(row) for row in np.flatnonzero(beyond > TRAINED * usual)]
    is_padded = np.count_nonzero(beyond < SMALL * usual) > len(trained)
    if trained and (is_padded or _vary(sizes[trained], sizes[:tokens], width)):
        named = listing([str(row) for row in trained[:1000]], 5, where="")
        said = f"{escape(key)} has {count(len(trained), 'trained row')} without a token: {named}"
        yield Found(Status.WARN, said, OTHER_TOKENS, (key,), figures={"rows": len(trained)})


def _vary(sizes: Array, usual: Array, width: int) -> bool:
    """Return whether the ``sizes`` of rows vary more than sizes of new rows, and nearly as much as the sizes ``usual``.

    The sizes of rows of ``width`` normally distributed numbers have a relative deviation of 1 / sqrt(2 * width). If it
    is measured on ``n`` rows, its relative error is 1 / sqrt(2 * n).
    """
    if len(sizes) < FEWEST or not width:
        return False
    own, other = (float(np.std(some) / np.mean(some)) for some in (sizes, usual))
    by_chance = (1 + ERRORS / sqrt(2 * len(sizes))) / sqrt(2 * width)
    return own > max(by_chance, VARIED * other)


def _without(rows: Array, row: int | None) -> Array:
    return rows[rows != row] if row is not None else rows


def _rows(number: int) -> str:
    return f"{count(number, 'row')} that {'was' if number == 1 else 'were'}"


def _untrained(rows: Rows, tokens: int, width: int) -> tuple[Array, Array, Array]:
    """Return three arrays of row indices: rows that are zero, rows that equal another row, and small rows.

    ``tokens`` is the number of tokens, 0 if it is not known; later rows are padding and are left out. ``width`` is the
    length of a row.
    """
    squares = rows.squares
    is_zero = squares == 0
    is_equal = rows.alike & ~is_zero & (width > 1)
    sizes = np.sqrt(squares / width)
    usual = float(np.sort(sizes[~is_zero])[np.count_nonzero(~is_zero) // 2]) if not is_zero.all() else 0.0
    is_small = ~is_zero & ~is_equal & (sizes < SMALL * usual)  # numpy.median would import numpy.ma
    end = tokens or _end(is_zero | is_equal | is_small)
    return tuple(np.flatnonzero(one[:end]) for one in (is_zero, is_equal, is_small))  # type: ignore[return-value]


def _end(is_odd: Array) -> int:
    """Return the index after the last row for which ``is_odd`` is false; all rows from there on are padding.

    If ``is_odd`` is true for all rows, none counts as padding, and the number of rows is returned.
    """
    sound = np.flatnonzero(~is_odd)
    return int(sound[-1]) + 1 if sound.size else len(is_odd)


def _against(subject: Subject) -> str:
    there = any((one := subject.measured.get(key)) is not None and one.rows is not None for key in subject.embeddings)
    return "" if there else "it has no embedding of tokens in 16 or 32 bits"


def _looks_at(subject: Subject) -> str:
    return f"rows of {listing([escape(key) for key in subject.embeddings], 2)}"


CHECK = Check("untrained-rows", "the rows of all tokens were trained", _run, _against, _looks_at)
