"""Writes the tables of cases into the documentation: ``python -m tests.promises``.

With ``--check`` it only says which tables are not those of the cases, and exits with 1 if one is not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .clauses import SECTIONS
from .table import ALL, of_items, of_page, of_section, on_page, table

TESTS = Path(__file__).parents[1]


class Count:
    """Counts what pytest collects."""

    tables: dict[str, str]

    def pytest_collection_finish(self, session: Any) -> None:
        numbers = of_items(session.config.stash[ALL])
        self.tables = {section: table(section, of_section(section, numbers), {}) for section in SECTIONS}


os.environ["CKPT_TESTS"] = "full"  # before the tests are imported
count = Count()
pytest.main(["--collect-only", "-qq", *(str(TESTS / section) for section in SECTIONS)], plugins=[count])
if "--check" in sys.argv[1:]:
    other = [section for section in SECTIONS if of_page(section) != count.tables[section]]
    sys.exit(f"run python -m tests.promises: not the cases' tables: {', '.join(other)}" if other else 0)
for section in SECTIONS:
    on_page(section, count.tables[section])
