"""Defines a check: its id, its title, and the function that looks for faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...util.text import count, escape, listing
from .report import CheckRow, Found, Status
from .subject import Subject

__all__ = ["SHOWN", "Check", "nothing_against", "of_keys", "without_values"]

SHOWN = 3
"""Keys that a finding names; ``--json`` lists all."""


def nothing_against(subject: Subject) -> str:
    """Return '': the check applies to every checkpoint."""
    return ""


def without_values(subject: Subject) -> str:
    """Return the reason if no value of the checkpoint could be read; else ''."""
    return "" if subject.measured else "no value can be read"


@dataclass(frozen=True)
class Check:
    """A check. ``run`` yields what it finds; ``against`` returns why it cannot be run, '' if it can.

    ``id`` is in kebab-case and never changes: it is what ``--skip`` and SARIF name. ``looks_at`` says in words what was
    looked at.
    """

    id: str
    title: str
    run: Callable[[Subject], Iterable[Found]]
    against: Callable[[Subject], str] = nothing_against
    looks_at: Callable[[Subject], str] = nothing_against

    def row(self, subject: Subject) -> CheckRow:
        """Run the check and return its outcome."""
        why = self.against(subject)
        found = () if why else tuple(self.run(subject))
        return CheckRow(self.id, self.title, found, why, "" if why else self.looks_at(subject))


def of_keys(status: Status, keys: Sequence[str], what: str, todo: str, **figures: int | float | str) -> Found:
    """Return a finding on tensors; ``what`` is what they are, after their number ("3 tensors" or "1 tensor")."""
    number = count(len(keys), "tensor")
    named = listing([escape(key) for key in keys], SHOWN)
    return Found(status, f"{number} {what}: {named}", todo, tuple(keys), figures={"tensors": len(keys), **figures})
