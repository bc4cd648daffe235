"""The table of what was run: for each promise the number of cases, and how they ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .clauses import CLAUSES

PAGE = Path(__file__).parents[2] / "docs/explanation/safety.md"
BEGIN, END = "<!-- cases -->\n", "<!-- end of cases -->\n"


def rows(numbers: Mapping[str, int], failed: Mapping[str, int]) -> str:
    """The table, in Markdown."""
    lines = ["| promise | cases | result |", "|---|--:|---|"]
    for clause in CLAUSES:
        if clause in numbers:
            result = f"{failed[clause]} failed" if failed.get(clause) else "all held"
            lines.append(f"| {clause} | {numbers[clause]} | {result} |")
    bad = sum(failed.values())
    lines.append(f"| in all | {sum(numbers.values())} | {f'{bad} failed' if bad else 'all held'} |")
    return "\n".join(lines) + "\n"


def of_items(items: Iterable[pytest.Item]) -> Counter[str]:
    """How many tests are of each promise."""
    marks = (item.get_closest_marker("clause") for item in items)
    return Counter(mark.args[0] for mark in marks if mark is not None)


def of_page() -> str:
    """The table in the documentation."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def on_page(table: str) -> None:
    """Put a table into the documentation."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + begin + table + END + rest.partition(END)[2])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of what this run has run."""
    passed, failed = (
        Counter(
            dict(report.user_properties)["clause"]
            for kind in kinds
            for report in terminalreporter.stats.get(kind, [])
            if "clause" in dict(getattr(report, "user_properties", ()))
        )
        for kinds in (["passed"], ["failed", "error"])
    )
    if passed or failed:
        terminalreporter.write_line("")
        terminalreporter.write(rows(passed + failed, failed))
