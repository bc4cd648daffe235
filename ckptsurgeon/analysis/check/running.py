"""Finds all checks in the folders of ``GROUPS``, and runs them in a fixed order."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import cast

from ...errors import ConfigError
from ...util.did_you_mean import close_names
from ...util.registry import discover
from ...util.text import escape
from .check import Check
from .report import CheckReport
from .subject import Subject

__all__ = ["all_checks", "run_checks", "skipped_ids"]

GROUPS = ("files", "values", "model", "adapter")
"""The folders of checks, in the order of the report; within a folder, checks are in the order of their files."""


@cache
def all_checks() -> tuple[Check, ...]:
    """Return all checks, in the order of the report."""
    found = (discover(f"{__package__}.{group}", "CHECK").values() for group in GROUPS)
    return tuple(cast("Check", one) for group in found for one in group)


def skipped_ids(ids: Collection[str]) -> tuple[str, ...]:
    """Return the ids of the checks to skip, without repeats; raises ConfigError for an unknown id."""
    known = [one.id for one in all_checks()] if ids else []  # takes long: the checks are imported
    for id in ids:
        if id not in known:
            near = " or ".join(close_names(id, known, 100))
            hint = f"Did you mean {near}?" if near else f"The checks are {', '.join(known)}."
            raise ConfigError(f"there is no check {escape(id)}.", hint=hint)
    return tuple(dict.fromkeys(ids))


def run_checks(subject: Subject, skip: Collection[str] = ()) -> CheckReport:
    """Run all checks except those whose ids are in ``skip``, and return the report."""
    rows = tuple(one.row(subject) for one in all_checks() if one.id not in skip)
    places = {id(one): one.nbytes for one in subject.measured.values()}
    return CheckReport(
        subject.path, subject.format, len(subject.tensors), sum(places.values()), rows, tuple(dict.fromkeys(skip))
    )
