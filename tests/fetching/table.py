"""The table of what fetching was put through: for each kind of fault the number of cases, and how they ended.

``python -m tests.fetching`` writes it into the documentation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

__all__ = ["FILES", "KINDS", "kind_of", "of_items", "of_page", "on_page", "rows"]

HERE = Path(__file__).parent
FILES = {"test_faults.py", "test_killed.py"}
"""Where the cases are."""
PAGE = HERE.parents[1] / "docs/explanation/safety.md"
BEGIN, END = "<!-- cases of fetching -->\n", "<!-- end of cases of fetching -->\n"

KINDS: dict[str, set[str]] = {
    "Bodies that end early, break off, stop, or come slowly": {
        "short body", "dropped connection", "less than the file", "hanging body", "slow body",
    },
    "As many bytes as there should be, and one of them wrong": {"wrong bytes"},
    "Answers of another range or version, or as if nothing of the kind was asked": {
        "another range", "another ETag", "no ranges",
    },
    "Answers without a length or with an absurd one, compressed, or that lack headers": {
        "chunked", "huge Content-Length", "gzip", "no ETag", "no X-Repo-Commit",
    },
    "Servers that are busy or fail": {"too many requests", "status 500", "status 503"},
    "Files that are not there, gated or forbidden": {"status 404", "gated", "forbidden"},
    "Redirects: to another host, to other schemes, without end": {"redirect 302"},
    "Branches that move, waits, resuming, credentials and signed addresses, full disks": {""},
    "Kills at random moments": {"kill"},
}  # fmt: skip


def kind_of(item: pytest.Item) -> str:
    """Return which kind of fault a test is of, '' where it is no case."""
    if item.path.name not in FILES or item.path.parent != HERE:
        return ""
    row = getattr(item, "callspec", None) and item.callspec.params.get("row")  # type: ignore[attr-defined]
    name = "kill" if item.path.name == "test_killed.py" else row.fault.name if row else ""
    return next(kind for kind, names in KINDS.items() if name in names)


def of_items(items: Iterable[pytest.Item]) -> Counter[str]:
    """How many tests are of each kind."""
    return Counter(kind for kind in map(kind_of, items) if kind)


def rows(numbers: Mapping[str, int], failed: Mapping[str, int]) -> str:
    """The table, in Markdown."""
    lines = ["| kind of fault | cases | result |", "|---|--:|---|"]
    for kind in (kind for kind in KINDS if kind in numbers):
        lines.append(f"| {kind} | {numbers[kind]} | {_result(failed.get(kind, 0))} |")
    return "\n".join([*lines, f"| in all | {sum(numbers.values())} | {_result(sum(failed.values()))} |"]) + "\n"


def _result(failed: int) -> str:
    return f"{failed} failed" if failed else "all held"


def of_page() -> str:
    """The table in the documentation."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def on_page(table: str) -> None:
    """Put a table into the documentation."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + begin + table + END + rest.partition(END)[2])
