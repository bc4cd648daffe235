"""Prints the table of what this run has put fetching through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .table import kind_of, rows


@pytest.fixture(autouse=True)
def _kind(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    kind = kind_of(request.node)
    if kind:
        record_property("fetching", kind)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of what this run has run."""
    passed, failed = (
        Counter(
            dict(report.user_properties)["fetching"]
            for result in results
            for report in terminalreporter.stats.get(result, [])
            if "fetching" in dict(getattr(report, "user_properties", ()))
        )
        for results in (["passed"], ["failed", "error"])
    )
    if passed or failed:
        terminalreporter.write_line("")
        terminalreporter.write(rows(passed + failed, failed))
