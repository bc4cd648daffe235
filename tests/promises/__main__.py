"""Writes the tables of cases into the documentation: ``python -m tests.promises``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .clauses import SECTIONS
from .table import ALL, of_items, of_section, on_page, table

TESTS = Path(__file__).parents[1]


class Count:
    """Counts what pytest collects."""

    def pytest_collection_finish(self, session: Any) -> None:
        numbers = of_items(session.config.stash[ALL])
        for section in SECTIONS:
            on_page(section, table(section, of_section(section, numbers), {}))


os.environ["CKPT_TESTS"] = "full"  # before the tests are imported
pytest.main(["--collect-only", "-qq", *(str(TESTS / section) for section in SECTIONS)], plugins=[Count()])
