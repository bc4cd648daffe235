"""Checks the values in the rows of a donor: a row with NaN makes other rows NaN, and rows of zeros are useless."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ....checkpoint.checkpoint import Checkpoint
from ....errors import PlanError
from ....planning.plan.rows import VocabularyRows
from ....planning.plan.step import Input, Step
from ....util.text import count, escape, listing

__all__ = ["checked_rows"]

BLOCK = 16 << 20
"""The size in bytes, in single precision, of the blocks of rows that are searched for NaN and zeros."""


def checked_rows(
    steps: Sequence[Step], rows: VocabularyRows, sources: Sequence[Checkpoint], tokens: Sequence[str]
) -> Iterator[str]:
    """Yield notes on new rows that become zero, because the donor's row is zero.

    Raises PlanError for rows with NaN, or if fewer rows of shared tokens than ``--omp-k`` are not zero.
    """
    donor = rows.donor
    assert donor is not None
    wanted, places = donor.wanted(rows), {place: at for at, place in enumerate(donor.rows) if place is not None}
    bases = {row: at for at, row in enumerate(rows.rows) if isinstance(row, int) and donor.rows[at] is not None}
    done: set[tuple[int, str]] = set()
    for step in steps:
        for one in step.inputs if step.rows is not None and step.more else ():
            if (one.source, one.key) in done:
                continue
            done.add((one.source, one.key))
            own = places if one is step.more[0] else bases
            zeros = _zeros(one, sources[one.source], own, lambda at: repr(tokens[at]))
            if own is places:
                yield from _zeros_said(one, zeros, rows, wanted, tokens)


def _zeros_said(
    one: Input, zeros: set[int], rows: VocabularyRows, wanted: Sequence[int], tokens: Sequence[str]
) -> Iterator[str]:
    assert rows.donor is not None
    shared = [at for at, row in enumerate(rows.rows) if isinstance(row, int) and rows.donor.rows[at] is not None]
    useful = len(shared) - len(zeros.intersection(shared))
    if useful < rows.donor.picks:
        raise PlanError(
            f"a new row would be a sum of {rows.donor.picks} rows, but only {count(useful, 'row')} of shared tokens "
            f"in {escape(one.key)} of the donor {'is' if useful == 1 else 'are'} not zero.",
            hint=f"Use fewer rows for each new row: --omp-k {useful}."
            if useful
            else "Name another donor: --donor DIR.",
        )
    empty = [repr(tokens[at]) for at in wanted if at in zeros]
    if empty:
        yield (
            f"{count(len(empty), 'new token')} with a zero row in {escape(one.key)} of the donor "
            f"{'gets a zero row' if len(empty) == 1 else 'get zero rows'}: {listing(empty)}"
        )


def _zeros(one: Input, source: Checkpoint, places: Mapping[int, int], name: Callable[[int], str]) -> set[int]:
    """Return the indices of the tokens whose rows in the tensor ``one`` of ``source`` are all zeros.

    ``places`` is {row: index of its token}; other rows are not read. Raises PlanError if one of these rows has NaN or
    infinite values; ``name`` returns the text of a token by its index.
    """
    import numpy as np

    from ....engine.compute.reading import read_part
    from ....tensors.ops.casts import cast

    info, wrong = source[one.key], []
    found: set[int] = set()
    each = max(1, BLOCK // (4 * info.shape[1]))
    for first in range(0, info.shape[0], each):
        last = min(first + each, info.shape[0])
        own = [row for row in range(first, last) if row in places]
        if not own:
            continue
        values = read_part(source, info, ((first, last), (0, info.shape[1])))
        largest = np.abs(cast(values, info.dtype, "float32")[0]).max(1)
        wrong += [name(places[row]) for row in own if not np.isfinite(largest[row - first])]
        found.update(places[row] for row in own if largest[row - first] == 0)
    if wrong:
        raise PlanError(
            f"{escape(one.key)} of {escape(source.path)} has NaN or infinite values in {count(len(wrong), 'row')}, "
            f"which cannot be summed: {listing(wrong)}.",
            hint="Find these values with ckpt check, or fill new rows in another way: --new-tokens mean.",
            details=wrong,
        )
    return found
