"""The documentation's tables of cases are those of the cases that there are.

``python -m tests.promises`` writes them anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..helpers.depth import FULL
from .clauses import SECTIONS
from .table import ALL, of_items, of_page, of_section, table

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_documentation_s_table_is_that_of_the_cases(section: str, request: pytest.FixtureRequest) -> None:
    if not FULL:
        pytest.skip("the tables count the cases of make test-all")
    folder = TESTS / section
    items = [item for item in request.config.stash[ALL] if item.path.parent == folder]
    if {item.path.name for item in items} != {path.name for path in folder.glob("test_*.py")}:
        pytest.skip(f"only some of the files of tests/{section} are run")
    numbers = of_section(section, of_items(items))
    assert list(SECTIONS[section]) == list(numbers)
    assert of_page(section) == table(section, numbers, {})
