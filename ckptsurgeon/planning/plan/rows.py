"""The source rows that make up each row of a destination with another vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

from ...util.short_repr import Brief

__all__ = ["OMP", "DonorRows", "Row", "VocabularyRows", "rows_of_each"]

Row: TypeAlias = "int | tuple[int, ...] | None"
"""The origin of a row: a source row; several, to take their mean; () for zeros; None if the source lacks the token."""


OMP = "omp"
"""The value of ``VocabularyRows.new`` if rows of new tokens are made from rows of another model, the donor."""


@dataclass(frozen=True, repr=False)
class DonorRows(Brief):
    """The rows of a donor, another model that has the new tokens; rows of new tokens are made from its rows.

    ``size`` is the donor's number of rows. ``rows`` has, for each row of the destination, the index of the donor's row
    with the same token; None for padding, and for tokens that the donor lacks. Each new row is a weighted sum of at
    most ``picks`` rows of tokens that source and donor share.
    """

    size: int
    picks: int
    rows: tuple[int | None, ...]

    def place(self, row: int) -> int:
        """Return the index of the donor's row for the destination's row ``row``, whose token the donor must have."""
        found = self.rows[row]
        assert found is not None
        return found

    def shared(self, rows: VocabularyRows) -> list[tuple[int, int]]:
        """Return (row of the donor, row of the source) of each token that both have, in the donor's order."""
        pairs = zip(self.rows, rows.rows, strict=True)
        return sorted((own, row) for own, row in pairs if own is not None and isinstance(row, int))

    def wanted(self, rows: VocabularyRows) -> list[int]:
        """Return the rows of the destination that are made from rows of the donor.

        They are the rows of tokens that the donor has and the source lacks.
        """
        pairs = enumerate(zip(self.rows, rows.rows, strict=True))
        return [place for place, (own, row) in pairs if own is not None and row is None]

    def to_json(self) -> dict[str, Any]:
        """Return the rows as plain data."""
        return {"size": self.size, "picks": self.picks, "rows": list(self.rows)}

    @staticmethod
    def from_json(data: Any, rows: int) -> DonorRows | None:
        """Return the object for JSON data, None for None; ``rows`` is the number of rows of the destination.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        size, picks, own = int(data["size"]), data["picks"], tuple(data["rows"])
        if type(picks) is not int or picks < 1:
            raise ValueError(f"the field picks is {picks!r:.40}, not a number above 0")
        if len(own) != rows or not all(row is None or _within(row, size) for row in own):
            raise ValueError(
                f"rows of the donor must list a row number below {size}, or null, for each of the {rows} rows of the "
                "output"
            )
        return DonorRows(size, picks, own)


@dataclass(frozen=True, repr=False)
class VocabularyRows(Brief):
    """The origin of the row of each token of the destination.

    ``source`` and ``destination`` are the names of the vocabularies, ``size`` is the number of rows of the source. An
    entry of ``rows`` is the index of a source row, or a tuple of indices of rows whose mean is taken (empty: zeros). It
    is None if the source lacks the token. Then ``new`` says what the row becomes: ``init``, the destination's initial
    values; ``mean``, the mean of all rows; ``zero``; ``omp``, a sum of rows as ``donor`` says (zeros for tensors with
    one number for each token); or, if several models are merged, ``others``: the row of the base, else the mean of the
    models that have the token. ``others or zero`` is the same as ``others``, except for zeros if no model has the
    token.
    """

    source: str
    destination: str
    size: int
    rows: tuple[Row, ...]
    new: str = "init"
    lent: tuple[tuple[int, int], ...] = ()
    """In a merge: (output row, row of this source) for each row that models without the output row's token use."""
    padded: int = 0
    """The number of rows at the end that have no token; a merge fills them with the mean of each model's other rows."""
    unlisted: int = 0
    """The number of rows at the end of the source that have no token; the mean of all rows does not include them."""
    donor: DonorRows | None = None
    """With ``omp``: the rows of the model that new rows are made from. Rows of padding are the mean of all rows."""
    means: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """A cache: the mean of all rows of a tensor."""

    @cached_property
    def kept(self) -> int:
        """The number of tokens whose row is copied from the source, to the same position or another."""
        return sum(isinstance(row, int) for row in self.rows)

    @cached_property
    def moved(self) -> int:
        """The number of tokens whose row is copied from the source to another position."""
        return sum(isinstance(row, int) and row != place for place, row in enumerate(self.rows))

    @cached_property
    def composed(self) -> int:
        """The number of rows that are means of several rows of the source, or zeros, and not copies of one row."""
        return sum(isinstance(row, tuple) for row in self.rows)

    @cached_property
    def fresh(self) -> int:
        """The number of rows for tokens that the source does not have."""
        return sum(row is None for row in self.rows)

    @cached_property
    def share(self) -> float:
        """The share of rows that come from the source, from 0 to 1."""
        return 1 - self.fresh / len(self.rows) if self.rows else 1.0

    @cached_property
    def is_identity(self) -> bool:
        """Whether the two vocabularies have the same rows at the same positions."""
        return len(self.rows) == self.size and all(row == place for place, row in enumerate(self.rows))

    @cached_property
    def computed(self) -> VocabularyRows:
        """A copy of this object in which rows of zeros replace all rows that only copy a source row."""
        return replace(self, rows=tuple(() if isinstance(row, int) else row for row in self.rows))

    def between(self, have: int, want: int) -> VocabularyRows:
        """Return the rows for a source of ``have`` rows and a destination of ``want`` rows; both may have padding.

        ``have`` and ``want`` are at least the numbers of tokens of the two vocabularies. Rows of padding in the
        destination are made like the rows of new tokens.
        """
        more = want - len(self.rows)
        rows = (*self.rows, *(None,) * more)
        return replace(self, size=have, rows=rows, padded=more, unlisted=have - self.size, means={})

    @property
    def draws(self) -> bool:
        """Whether the destination's own initial values are needed."""
        return self.new == "init" and self.fresh > 0

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the runs of destination rows, from ``begin`` to before ``end``, that are consecutive in the source too.

        A run is (first destination row, first source row, number of rows).
        """
        place = begin
        while place < end:
            row = self.rows[place]
            number = 1
            if isinstance(row, int):
                while place + number < end and self.rows[place + number] == row + number:
                    number += 1
                yield place, row, number
            place += number

    def to_json(self) -> dict[str, Any]:
        """Return the rows as plain data."""
        rows = [list(row) if isinstance(row, tuple) else row for row in self.rows]
        return {
            "source": self.source, "destination": self.destination, "size": self.size, "new": self.new, "rows": rows,
            **({"lent": [list(pair) for pair in self.lent]} if self.lent else {}),
            **({"padded": self.padded} if self.padded else {}),
            **({"unlisted": self.unlisted} if self.unlisted else {}),
            **({"donor": self.donor.to_json()} if self.donor is not None else {}),
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> VocabularyRows | None:
        """Return the rows that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        size, new = int(data["size"]), str(data["new"])
        if new not in (*NEW, *OF_MERGES):
            raise ValueError(f"the field new is {new!r:.40}, not a value for the rows of new tokens")
        rows = tuple(_row(row, size, empty=new in OF_MERGES) for row in data["rows"])
        lent = tuple(_lent(pair, len(rows), size) for pair in data.get("lent", ()))
        padded = data.get("padded", 0)
        if (
            type(padded) is not int
            or not 0 <= padded < max(1, len(rows))
            or any(row is not None for row in rows[len(rows) - padded :])
        ):
            raise ValueError(
                f"the field padded is {padded!r:.40}, but must be the number of rows at the end that have no token"
            )
        unlisted = data.get("unlisted", 0)
        if type(unlisted) is not int or not 0 <= unlisted < max(1, size):
            raise ValueError(
                f"the field unlisted is {unlisted!r:.40}, but must be the number of the source's rows without a token"
            )
        donor = DonorRows.from_json(data.get("donor"), len(rows))
        if (new == OMP) != (donor is not None):
            raise ValueError(
                f"the field new of the vocabulary is {new!r:.40}, but there is {'a' if donor else 'no'} field donor"
            )
        return VocabularyRows(
            str(data["source"]), str(data["destination"]), size, rows, new, lent, padded, unlisted, donor
        )


NEW = ("init", "mean", "zero", OMP)
"""Values of ``VocabularyRows.new``, for tokens that the source lacks, except in merges."""
OF_MERGES = ("others", "others or zero")
"""Values of ``VocabularyRows.new`` in a merge, for tokens that a model lacks."""


def _row(row: Any, size: int, *, empty: bool) -> Row:
    if row is None:
        return None
    one = tuple(row) if isinstance(row, list) else row
    several = one if isinstance(one, tuple) else (one,)
    if not (several or empty) or not all(_within(number, size) for number in several):
        raise ValueError(f"{row!r:.40} is not a row of the source")
    return one


def _lent(pair: Any, places: int, size: int) -> tuple[int, int]:
    place, row = pair
    if not (_within(place, places) and _within(row, size)):
        raise ValueError(
            f"the field lent has {pair!r:.40}, but must have pairs of a row of the output (less than {places}) and a "
            f"row of the source (less than {size})"
        )
    return place, row


def _within(number: Any, size: int) -> bool:
    return type(number) is int and 0 <= number < size


def rows_of_each(data: Mapping[str, Any], sources: int) -> tuple[VocabularyRows, ...]:
    """Return the vocabulary rows of each source from the JSON of a plan or recipe; empty if it has none.

    ``sources`` is the number of sources. Raises ValueError, TypeError or KeyError for wrong data.
    """
    found = tuple(rows for one in data.get("vocabularies") or () if (rows := VocabularyRows.from_json(one)) is not None)
    if found and len(found) != sources:
        raise ValueError(
            f"there are {len(found)} vocabularies for {sources} sources; each source must have one vocabulary"
        )
    if len({(len(rows.rows), rows.padded) for rows in found}) > 1:
        raise ValueError("the vocabularies differ in length")
    return found
