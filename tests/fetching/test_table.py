"""The documentation's table of faults is that of the cases that there are."""

from __future__ import annotations

import pytest

from .table import FILES, HERE, KINDS, of_items, of_page, rows


def test_the_documentation_s_table_is_that_of_the_cases(request: pytest.FixtureRequest) -> None:
    items = [item for item in request.session.items if item.path.parent == HERE]
    if not {item.path.name for item in items} >= FILES:
        pytest.skip("only some of the files of tests/fetching are run")
    numbers = of_items(items)
    assert list(KINDS) == [kind for kind in KINDS if numbers[kind]]
    assert of_page() == rows(numbers, {})
