"""Finds all checks in the folders of ``GROUPS``, and runs them in a fixed order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import cast

from ...errors import ConfigError
from ...tensors.composition import leaves
from ...util.did_you_mean import close_names
from ...util.registry import discover
from ...util.text import escape
from .check import Check
from .report import CheckReport, CheckRow, Found
from .subject import Subject

__all__ = ["all_checks", "run_checks", "skipped_ids"]

GROUPS = ("files", "values", "model", "adapter")
"""The folders of checks, in the order of the report; within a folder, checks are in the order of their files."""


@cache
def all_checks() -> tuple[Check, ...]:
    """Return all checks, in the order of the report."""
    found = ((group, one) for group in GROUPS for one in discover(f"{__package__}.{group}", "CHECK").values())
    return tuple(replace(cast("Check", one), group=group) for group, one in found)


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
    rows = tuple(_located(one.row(subject), subject) for one in all_checks() if one.id not in skip)
    places = {id(one): one.nbytes for one in subject.measured.values()}
    return CheckReport(
        subject.path, subject.format, len(subject.tensors), sum(places.values()), rows, tuple(dict.fromkeys(skip))
    )


def _located(row: CheckRow, subject: Subject) -> CheckRow:
    """Return ``row``, the outcome of a check, with the file of each tensor that a finding is about."""
    return replace(row, found=tuple(_with_files(one, subject) for one in row.found)) if row.found else row


def _with_files(found: Found, subject: Subject) -> Found:
    files = {key: name for key in found.keys if (name := _file_of(key, subject))}
    names = set(files.values())
    one = names.pop() if len(names) == 1 and len(files) == len(found.keys) else ""
    return replace(found, file=found.file or one, files=files)


def _file_of(key: str, subject: Subject) -> str:
    """Return the name of the file of a tensor; '' if it is not known, or if the tensor has parts in several files."""
    info = subject.tensors.get(key)
    stored = {one.storage.file for one in leaves(info) if one.storage is not None} if info is not None else set()
    name = stored.pop() if len(stored) == 1 else None
    return "" if name is None else name or subject.file
