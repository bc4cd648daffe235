"""Which rows of a source make each row of a destination whose vocabulary is another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from ...util.brief import Brief

__all__ = ["Row", "Rows", "rows_of_each"]

Row: TypeAlias = "int | tuple[int, ...] | None"
"""A row of the source, the mean of several, zeros for none (), or None for a token that the source does not have."""


@dataclass(frozen=True, repr=False)
class Rows(Brief):
    """A row for each token of the destination.

    ``source`` and ``destination`` name the vocabularies, ``size`` is how many rows the source has, ``new`` what becomes
    of rows that are None: ``init``, ``mean``, ``zero``, or, where several models are merged, ``others``: the row of the
    base, else the mean of the models that have the token (with ``others or zero`` zeros where none has).
    """

    source: str
    destination: str
    size: int
    rows: tuple[Row, ...]
    new: str = "init"
    lent: tuple[tuple[int, int], ...] = ()
    """Places, each with a row of this source that all models of a merge get there that have none."""
    padded: int = 0
    """How many rows at the end are no token's: of each model of a merge, the mean of its rows before."""
    means: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out of a tensor once: the mean of all its rows."""

    @cached_property
    def kept(self) -> int:
        """How many tokens keep their row, wherever it was."""
        return sum(isinstance(row, int) for row in self.rows)

    @cached_property
    def moved(self) -> int:
        """How many of those stand elsewhere than they did."""
        return sum(isinstance(row, int) and row != place for place, row in enumerate(self.rows))

    @cached_property
    def composed(self) -> int:
        """How many are the mean of several rows."""
        return sum(isinstance(row, tuple) for row in self.rows)

    @cached_property
    def fresh(self) -> int:
        """How many the source does not have at all."""
        return sum(row is None for row in self.rows)

    @cached_property
    def share(self) -> float:
        """Which part of the rows comes from the source."""
        return 1 - self.fresh / len(self.rows) if self.rows else 1.0

    @cached_property
    def is_identity(self) -> bool:
        """Whether every row stays where it is, and there is no other."""
        return len(self.rows) == self.size and all(row == place for place, row in enumerate(self.rows))

    @property
    def draws(self) -> bool:
        """Whether the destination's own initial values are needed."""
        return self.new == "init" and self.fresh > 0

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place, row of the source, number) for rows that follow each other in both, from ``begin``."""
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
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> Rows | None:
        """Return the rows that plain data spells, None for none; raises TypeError, ValueError or KeyError."""
        if data is None:
            return None
        size, new = int(data["size"]), str(data["new"])
        if new not in (*NEW, *OF_MERGES):
            raise ValueError(f"new tokens become {new!r:.40}")
        rows = tuple(_row(row, size, empty=new in OF_MERGES) for row in data["rows"])
        lent = tuple(_lent(pair, len(rows), size) for pair in data.get("lent", ()))
        padded = data.get("padded", 0)
        if (
            type(padded) is not int
            or not 0 <= padded < max(1, len(rows))
            or any(row is not None for row in rows[len(rows) - padded :])
        ):
            raise ValueError(f"{padded!r:.40} rows are said to be no token's")
        return Rows(str(data["source"]), str(data["destination"]), size, rows, new, lent, padded)


NEW = ("init", "mean", "zero")
OF_MERGES = ("others", "others or zero")
"""What becomes of rows that are None."""


def _row(row: Any, size: int, *, empty: bool) -> Row:
    if row is None:
        return None
    one = tuple(row) if isinstance(row, list) else row
    several = one if isinstance(one, tuple) else (one,)
    if not (several or empty) or not all(_within(number, size) for number in several):
        raise ValueError(f"a row is {row!r:.40}")
    return one


def _lent(pair: Any, places: int, size: int) -> tuple[int, int]:
    place, row = pair
    if not (_within(place, places) and _within(row, size)):
        raise ValueError(f"a row that is lent is {pair!r:.40}")
    return place, row


def _within(number: Any, size: int) -> bool:
    return type(number) is int and 0 <= number < size


def rows_of_each(data: Mapping[str, Any], sources: int) -> tuple[Rows, ...]:
    """Return the rows of each source that a plan or a recipe has, if any; raises as ``Rows.from_json`` does."""
    found = tuple(rows for one in data.get("vocabularies") or () if (rows := Rows.from_json(one)) is not None)
    if found and len(found) != sources:
        raise ValueError(f"it has {len(found)} vocabularies for {sources} sources")
    if len({(len(rows.rows), rows.padded) for rows in found}) > 1:
        raise ValueError("its vocabularies are of several lengths")
    return found
