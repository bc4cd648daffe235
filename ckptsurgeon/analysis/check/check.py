"""Defines a check: its id, its title, and the function that looks for faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...util.text import count, escape, listing
from .report import CheckRow, Found, Status
from .subject import Subject

__all__ = ["SHOWN", "Check", "nothing_against", "of_keys", "without_files", "without_values"]

SHOWN = 3
"""The largest number of keys in the message of a finding; ``--json`` lists all keys."""


def nothing_against(subject: Subject) -> str:
    """Return '': the check can be run on every checkpoint. It is the default of ``Check.against``."""
    return ""


def without_files(subject: Subject) -> str:
    """Return why a check of files cannot be run (the tensors are in memory, not in files); '' if it can."""
    return "the tensors are in memory" if subject.in_memory else ""


def without_values(subject: Subject) -> str:
    """Return why a check of values cannot be run (no tensor has values that can be read); '' if it can."""
    return "" if subject.measured else "no value can be read"


@dataclass(frozen=True)
class Check:
    """A check. ``run`` yields its findings; ``against`` returns the reason why it cannot be run, '' if it can be run.

    ``id`` is in kebab-case and never changes, because ``--skip`` and SARIF use it. ``title`` is the statement that the
    check tests. ``looks_at`` returns a phrase for the examined things, such as "24 tensors".
    ``group`` is the name of its folder: files, values, model or adapter.
    """

    id: str
    title: str
    run: Callable[[Subject], Iterable[Found]]
    against: Callable[[Subject], str] = nothing_against
    looks_at: Callable[[Subject], str] = nothing_against
    group: str = ""

    def row(self, subject: Subject) -> CheckRow:
        """Run the check and return its outcome."""
        why = self.against(subject)
        found = () if why else tuple(self.run(subject))
        return CheckRow(self.id, self.title, found, why, "" if why else self.looks_at(subject), self.group)


def of_keys(status: Status, keys: Sequence[str], what: str, todo: str, **figures: int | float | str) -> Found:
    """Return a finding about the tensors ``keys``; ``figures`` maps names to the numbers in its message.

    The message begins with the number of tensors, such as "3 tensors"; ``what`` is the rest, such as "are all zeros".
    ``todo`` is the advice.
    """
    number = count(len(keys), "tensor")
    named = listing([escape(key) for key in keys], SHOWN)
    return Found(status, f"{number} {what}: {named}", todo, tuple(keys), figures={"tensors": len(keys), **figures})
