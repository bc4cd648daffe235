"""Writes the table of cases into the documentation: ``python -m tests.hostile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .table import of_items, on_page, rows


class Count:
    """Counts what pytest collects."""

    def pytest_collection_finish(self, session: Any) -> None:
        on_page(rows(of_items(session.items), {}))


pytest.main(["--collect-only", "-qq", str(Path(__file__).parent)], plugins=[Count()])
