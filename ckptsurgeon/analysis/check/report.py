"""The result of a check, as plain data: PASS, WARN, FAIL or NOT RUN for each check, with figures and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from ...util.notebook import InNotebooks
from ...util.short_repr import Brief
from ...util.text import escape

__all__ = ["DAMAGED", "CheckReport", "CheckRow", "Figure", "Found", "Status"]

DAMAGED = "files are damaged, so not all tensors are known"
"""The reason why some checks do not run on a damaged checkpoint."""

Figure: TypeAlias = int | float | str | None


class Status(Enum):
    """The outcome of a check: PASS, WARN, FAIL or NOT RUN."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    NOT_RUN = "NOT RUN"


@dataclass(frozen=True, repr=False)
class Found(Brief):
    """A finding of a check: ``what`` is its message, ``todo`` the advice.

    ``keys`` are the tensors that the finding is about; ``file`` is set if the finding is about one file. ``figures``
    are the numbers in the message, by name. ``files`` maps keys to the names of their files.
    """

    status: Status
    what: str
    todo: str = ""
    keys: tuple[str, ...] = ()
    file: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {
            "status": self.status.value,
            "what": self.what,
            "todo": self.todo,
            "keys": list(self.keys),
            "file": self.file,
            "figures": [{"name": name, "value": value} for name, value in self.figures.items()],
        }


@dataclass(frozen=True, repr=False)
class CheckRow(Brief):
    """The outcome of one check.

    ``found`` are the findings. ``why`` is the reason if the check was not run. ``looked_at`` is a phrase for the
    examined things, such as "24 tensors". ``group`` says what the check examines: files, values, model or adapter.
    """

    id: str
    title: str
    found: tuple[Found, ...] = ()
    why: str = ""
    looked_at: str = ""
    group: str = ""

    @property
    def status(self) -> Status:
        """The worst status of the findings; PASS if there are none, NOT RUN if the check was not run."""
        if self.why:
            return Status.NOT_RUN
        told = {one.status for one in self.found}
        return next((one for one in (Status.FAIL, Status.WARN) if one in told), Status.PASS)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "id": self.id,
            "title": self.title,
            "group": self.group,
            "status": self.status.value,
            "looked_at": self.looked_at,
            "why": self.why or None,
            "found": [one.to_json() for one in self.found],
        }


@dataclass(frozen=True, repr=False)
class CheckReport(InNotebooks):
    """The outcome of all checks on one checkpoint, in the order of the checks.

    ``skipped`` are the ids of the checks that ``--skip`` leaves out; ``nbytes`` is the number of bytes of values that
    were read.
    """

    path: str
    format: str
    tensors: int
    nbytes: int
    rows: tuple[CheckRow, ...]
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<CheckReport {escape(self.path)}: {self.verdict.value}>"

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return self.verdict is not Status.FAIL

    @property
    def verdict(self) -> Status:
        """The worst status of all checks: FAIL, WARN or PASS."""
        return next((one for one in (Status.FAIL, Status.WARN) if self.counts[one]), Status.PASS)

    @property
    def counts(self) -> Mapping[Status, int]:
        """The number of checks with each status."""
        told = Counter(row.status for row in self.rows)
        return {status: told[status] for status in Status}

    @property
    def groups(self) -> Mapping[str, Status]:
        """The worst status of the checks in each group, in the order of the groups, without groups that did not run."""
        found: dict[str, Status] = {}
        for row in self.rows:
            if row.status is not Status.NOT_RUN:
                worst = found.get(row.group, Status.PASS)
                found[row.group] = min(worst, row.status, key=(Status.FAIL, Status.WARN, Status.PASS).index)
        return found

    def row(self, id: str) -> CheckRow:
        """Return the row of the check with this id; raises KeyError if there is none."""
        found = next((row for row in self.rows if row.id == id), None)
        if found is None:
            raise KeyError(id)
        return found

    def with_status(self, *statuses: Status) -> Sequence[CheckRow]:
        """Return the rows with these statuses, in the order in which the statuses are given."""
        return [row for status in statuses for row in self.rows if row.status is status]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "path": self.path,
            "format": self.format,
            "verdict": self.verdict.value,
            "ok": self.ok,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "counts": {status.value.lower().replace(" ", "_"): number for status, number in self.counts.items()},
            "rows": [row.to_json() for row in self.rows],
            "skipped": list(self.skipped),
        }
