"""The reasons why a check of adapters cannot be run."""

from __future__ import annotations

from ..subject import Subject

__all__ = ["no_adapter", "no_base"]


def no_adapter(subject: Subject) -> str:
    """Return why no check of adapters can be run: "it is not an adapter". Return '' for an adapter with factors."""
    return "" if subject.adapter is not None and subject.adapter.factors else "it is not an adapter"


def no_base(subject: Subject) -> str:
    """Return why an adapter cannot be compared with its base (it is not an adapter, or no base was given); else ''."""
    if why := no_adapter(subject):
        return why
    return "" if subject.adapter is not None and subject.adapter.has_base else "no base is given (--base BASE)"
