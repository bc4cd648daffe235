"""The tables of what was run: for each promise the number of cases, and how they ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .clauses import SECTIONS

PAGE = Path(__file__).parents[2] / "docs/explanation/safety.md"
ALL = pytest.StashKey[list[pytest.Item]]()
"""What was collected, with what is left out later because it needs rights over the machine."""

ENDS = {"failed": "failed", "error": "failed", "skipped": "skipped"}
"""How the kinds of reports that are no success are counted."""


def table(section: str, numbers: Mapping[str, int], ends: Mapping[tuple[str, str], int]) -> str:
    """The table of a section, in Markdown; ``ends`` counts, by promise and end, what did not hold or did not run."""
    lines = ["| promise | cases | result |", "|---|--:|---|"]
    lines += [_row(clause, numbers[clause], ends) for clause in SECTIONS[section] if numbers.get(clause)]
    total = Counter({("in all", end): 0 for _, end in ends})
    total.update({("in all", end): ends[clause, end] for clause, end in sorted(ends) if clause in SECTIONS[section]})
    return "\n".join([*lines, _row("in all", sum(numbers.values()), total)]) + "\n"


def _row(clause: str, number: int, ends: Mapping[tuple[str, str], int]) -> str:
    found = [f"{ends[clause, end]} {end}" for end in ("failed", "skipped") if ends.get((clause, end))]
    return f"| {clause} | {number} | {', '.join(found) or 'all held'} |"


def of_items(items: Iterable[pytest.Item]) -> Counter[str]:
    """How many tests are of each promise."""
    marks = (item.get_closest_marker("clause") for item in items)
    return Counter(mark.args[0] for mark in marks if mark is not None)


def of_section(section: str, numbers: Mapping[str, int]) -> dict[str, int]:
    """Those of the promises of a section."""
    return {clause: numbers[clause] for clause in SECTIONS[section] if clause in numbers}


def of_page(section: str) -> str:
    """The table in the documentation."""
    begin, end = _marks(section)
    return PAGE.read_text().partition(begin)[2].partition(end)[0]


def on_page(section: str, text: str) -> None:
    """Put a table into the documentation."""
    begin, end = _marks(section)
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(before + begin + text + end + rest.partition(end)[2])


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- cases: {section} -->\n", f"<!-- end of cases: {section} -->\n"


@pytest.hookimpl(tryfirst=True)
def tell_promises(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the report of each case which promise it is of."""
    config.stash[ALL] = list(items)
    for item in items:
        mark = item.get_closest_marker("clause")
        if mark is not None:
            item.user_properties.append(("clause", mark.args[0]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of each section of which this run has run cases."""
    numbers, ends = Counter[str](), Counter[tuple[str, str]]()
    for kind in ("passed", *ENDS):
        for clause in _clauses(terminalreporter.stats.get(kind, [])):
            numbers[clause] += 1
            if kind in ENDS:
                ends[clause, ENDS[kind]] += 1
    for section in SECTIONS:
        found = of_section(section, numbers)
        if found:
            terminalreporter.write_line("")
            terminalreporter.write(table(section, found, ends))


def _clauses(reports: Iterable[Any]) -> Iterable[str]:
    of = (dict(getattr(report, "user_properties", ())) for report in reports)
    return (each["clause"] for each in of if "clause" in each)
