"""What a check says: a name, a verdict, the figure it rests on and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["FAIL", "NOT_RUN", "PASS", "WARN", "Check", "Status"]

Status = Literal["PASS", "WARN", "FAIL", "NOT RUN"]
PASS: Status = "PASS"
WARN: Status = "WARN"
FAIL: Status = "FAIL"
NOT_RUN: Status = "NOT RUN"


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what came of it, and the figure (or the reason why it did not run).

    ``when`` it was looked at: before the first step, during, or after the last.
    """

    name: str
    status: Status
    says: str
    when: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain data."""
        return asdict(self)
