"""Converts reports to SARIF 2.1.0, a format for results of checks that code hosts such as GitHub display.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ...util.version import __version__
from .report import CheckReport, CheckRow, Found, Status
from .running import all_checks

__all__ = ["SCHEMA", "sarif_of"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Status.FAIL: "error", Status.WARN: "warning"}
MOST_KEYS = 1000
"""The largest number of tensors that a result lists."""


def sarif_of(reports: Sequence[CheckReport], unread: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return reports as SARIF data with one run: a rule for each check, a result for each WARN and FAIL.

    ``unread`` maps the paths of checkpoints that could not be opened to the errors, which become notifications.
    """
    ids = [one.id for one in all_checks()]
    rules = [{"id": one.id, "name": _pascal(one.id), "shortDescription": {"text": one.title}} for one in all_checks()]
    driver = {"name": "ckptsurgeon", "version": __version__, "rules": rules}
    results = [one for report in reports for row in report.rows for one in _results(report, row, ids.index(row.id))]
    run = {"tool": {"driver": driver}, "invocations": [_invocation(unread or {})], "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _invocation(unread: Mapping[str, str]) -> dict[str, Any]:
    notifications = [
        {"level": "error", "message": {"text": why}, "locations": [_place(path)]} for path, why in unread.items()
    ]
    more = {"toolExecutionNotifications": notifications} if notifications else {}
    return {"executionSuccessful": not unread, **more}


def _pascal(id: str) -> str:
    return "".join(word.capitalize() for word in id.split("-"))


def _results(report: CheckReport, row: CheckRow, rule: int) -> Iterator[dict[str, Any]]:
    for found in row.found:
        text = f"{found.what}. {found.todo}".rstrip() if found.todo else found.what
        yield {
            "ruleId": row.id,
            "ruleIndex": rule,
            "level": LEVELS[found.status],
            "message": {"text": text},
            "locations": [_location(report, file, keys) for file, keys in _places(found)],
            "properties": {"figures": dict(found.figures)},
        }


def _places(found: Found) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield (name of a file, keys of the tensors of a finding that are in this file).

    The name is '' for tensors whose file is not known.
    """
    if found.file or not found.files:
        yield found.file, found.keys
        return
    by_file: dict[str, list[str]] = {}
    for key in found.keys:
        by_file.setdefault(found.files.get(key, ""), []).append(key)
    yield from by_file.items()


def _location(report: CheckReport, file: str, keys: Sequence[str]) -> dict[str, Any]:
    path = os.path.join(report.path, file) if file and os.path.isdir(report.path) else report.path
    location = _place(path)
    if keys:
        named = [{"fullyQualifiedName": key, "kind": "member"} for key in keys[:MOST_KEYS]]
        location["logicalLocations"] = named
    return location


def _place(path: str) -> dict[str, Any]:
    uri = path if "://" in path else quote(path.replace(os.sep, "/"))
    return {"physicalLocation": {"artifactLocation": {"uri": uri}}}
