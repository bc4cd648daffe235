"""The documentation's table of cases is that of the cases that there are.

``python -m tests.hostile`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .clauses import CLAUSES
from .table import of_items, of_page, rows

HERE = Path(__file__).parent


def test_the_documentation_s_table_is_that_of_the_cases(request: pytest.FixtureRequest) -> None:
    items = [item for item in request.session.items if item.path.parent == HERE]
    collected = {item.path.name for item in items}
    if collected != {path.name for path in HERE.glob("test_*.py")}:
        pytest.skip("only some of the files of tests/hostile are run")
    numbers = of_items(items)
    assert list(CLAUSES) == [clause for clause in CLAUSES if numbers[clause]]
    assert of_page() == rows(numbers, {})
