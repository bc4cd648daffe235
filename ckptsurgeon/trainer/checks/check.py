"""The result of a check: name, status, and the figure that decides the status (or the reason why it did not run)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FAIL", "NOT_RUN", "PASS", "WARN", "Check", "Status"]

Status = Literal["PASS", "WARN", "FAIL", "NOT RUN"]
PASS: Status = "PASS"
WARN: Status = "WARN"
FAIL: Status = "FAIL"
NOT_RUN: Status = "NOT RUN"


@dataclass(frozen=True)
class Check:
    """A check in the report of a run: its name and its ``status``.

    ``says`` has the figure that decides the status, or the reason why the check did not run. ``when`` is the time of
    the check: before the first step, during training, or after the last step.
    """

    name: str
    status: Status
    says: str
    when: str = ""
