"""Recognises a token list of another model: the rows of its placeholders were trained, but rows of some words were not.

A model never reads placeholders such as ``[unused12]``, so their rows stay as they were initialised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ....tensors.ops.regions import Array
from ....util.text import brief_repr, count, escape
from ....vocabulary.placeholders import is_reserved
from ..report import Found, Status

__all__ = ["other_list"]

FEWEST = 50
"""A list is judged only if it has at least this many placeholders, and this many successive untrained rows."""
SMALL, SHARE = 0.6, 0.1
"""Rows whose norm is below ``SMALL`` times the median norm may be untrained.

At most the share ``SHARE`` of the placeholders may have such rows, and at most this share of such rows may belong to
placeholders.

In BERT, the rows of [unused...] have 0.33 to 0.41 of the median.
"""
SPREAD = 0.5
"""The relative deviation of the norms of untrained rows is less than this times the deviation of placeholders.

The standard deviation of the norms, as a share of their mean, is 0.02 to 0.03 for untrained rows of BERT, and 0.09 to
0.11 for rows of rare letters.
"""
TRAINED = "extra_id"
"""A word in the names of sentinels of T5, which are trained."""
ADVICE = "Use the tokeniser that was saved with these weights: the present one seems to belong to another model."


def other_list(key: str, squares: Array, names: Sequence[str]) -> Iterator[Found]:
    """Yield a finding if the rows of placeholders look trained, but several successive rows of words do not.

    ``squares`` has the sum of squares of each row, and ``names`` the tokens in the order of their rows.
    """
    sizes = np.sqrt(squares[: len(names)])
    if not FEWEST <= len(names) <= len(squares):
        return
    is_small = sizes < SMALL * np.sort(sizes)[len(sizes) // 2]
    runs = [one for one in _runs(is_small) if one.stop - one.start >= FEWEST]
    free = [row for row, name in enumerate(names) if is_reserved(name) and TRAINED not in name] if runs else []
    if len(free) < FEWEST or np.count_nonzero(is_small[free]) > SHARE * len(free):
        return
    is_free = np.zeros(len(names), bool)
    is_free[free] = True
    most = SPREAD * _spread(sizes[free])
    for run in runs:
        rows = run.stop - run.start
        if np.count_nonzero(is_free[run]) < SHARE * rows and _spread(sizes[run]) < most:
            first, last = (escape(brief_repr(names[one], 24)) for one in (run.start, run.stop - 1))
            said = f"{escape(key)} has {count(rows, 'successive row')} that seem never trained, from {first} to {last}"
            placeholder = escape(brief_repr(names[free[-1]], 24))
            trained = f"but trained rows of {count(len(free), 'placeholder')} such as {placeholder}"
            what = f"{said}, {trained}: perhaps the token list belongs to another model"
            yield Found(Status.WARN, what, ADVICE, (key,), figures={"rows": rows, "placeholders": len(free)})
            return


def _runs(mask: Array) -> Iterator[slice]:
    """Yield a slice for each run of successive true values."""
    ends = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    for begin, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True):
        yield slice(begin, end)


def _spread(sizes: Array) -> float:
    """Return the standard deviation of norms, as a share of their mean; 0 if all norms are 0."""
    mean = float(sizes.mean())
    return float(sizes.std()) / mean if mean else 0.0
