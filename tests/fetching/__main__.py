"""Writes the table of faults into the documentation: ``python -m tests.fetching``."""

from __future__ import annotations

from typing import Any

import pytest

from .table import HERE, of_items, on_page, rows


class Count:
    """Counts what pytest collects."""

    def pytest_collection_finish(self, session: Any) -> None:
        on_page(rows(of_items(session.items), {}))


pytest.main(["--collect-only", "-qq", str(HERE)], plugins=[Count()])
