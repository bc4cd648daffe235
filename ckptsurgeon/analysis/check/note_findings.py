"""Turns notes on a checkpoint into findings of a check."""

from __future__ import annotations

from collections.abc import Iterator

from .report import Found, Status
from .subject import Subject

__all__ = ["noted"]


def noted(subject: Subject, id: str) -> Iterator[Found]:
    """Yield findings for the notes on the checkpoint that the check ``id`` reports."""
    for note in subject.notes:
        kind = note.kind
        if kind.check == id:
            yield Found(Status.FAIL if kind.is_serious else Status.WARN, note, kind.todo)
