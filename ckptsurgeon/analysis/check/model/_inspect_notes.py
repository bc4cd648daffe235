"""Makes the checks whose findings are notes of ``ckpt inspect``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..check import Check
from ..note_findings import noted
from ..subject import Subject

__all__ = ["damaged", "noted_check", "unconfigured", "unless_noted"]


def noted_check(id: str, title: str, against: Callable[[Subject], str]) -> Check:
    """Return a check that reports the notes of ``ckpt inspect`` that have the kind ``id``.

    ``against`` returns the reason why the check cannot be run; it is not called if there are such notes.
    """
    return Check(id, title, partial(noted, id=id), unless_noted(id, against))


def unless_noted(id: str, against: Callable[[Subject], str]) -> Callable[[Subject], str]:
    """Return a function that returns '' if there are notes of the kind ``id``, else the result of ``against``."""

    def why(subject: Subject) -> str:
        return "" if any(True for _ in noted(subject, id)) else against(subject)

    return why


def damaged(subject: Subject) -> str:
    """Return why a check that needs all tensors cannot be run: a file is damaged. Return '' if no file is damaged."""
    return subject.fault


def unconfigured(subject: Subject) -> str:
    """Return the reason why config.json and the weights cannot be compared; '' if they can be compared."""
    return subject.fault or ("" if subject.has_configuration else "there is no config.json next to the weights")
