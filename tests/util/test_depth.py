"""Of many cases of one test the first and the last are tried, of few all."""

from __future__ import annotations

import pytest

from ..helpers.depth import CASES, cases_tried


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (1, 1), (3, 3), (4, 2), (1000, 2)])
def test_of_many_cases_two_are_tried(number: int, kept: int) -> None:
    found = cases_tried(["a"] * number)
    assert len(found) == kept <= CASES
    assert not number or {0, number - 1} <= found


def test_each_test_has_its_own() -> None:
    names = [f"{name}" for name in "abc" for _ in range(20)]
    found = cases_tried(names)
    assert {name: sum(names[index] == name for index in found) for name in "abc"} == dict.fromkeys("abc", 2)
