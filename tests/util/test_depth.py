"""Of many cases of one test some are tried, evenly spaced, the first and the last among them."""

from __future__ import annotations

import pytest

from ..helpers.depth import CASES, evenly_spaced


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (1, 1), (2, 2), (3, 2), (1000, 2)])
def test_of_many_cases_two_are_tried(number: int, kept: int) -> None:
    found = evenly_spaced(["a"] * number)
    assert len(found) == kept <= CASES
    assert not number or {0, number - 1} <= found


def test_each_test_has_its_own() -> None:
    names = [f"{name}" for name in "abc" for _ in range(20)]
    found = evenly_spaced(names)
    assert {name: sum(names[index] == name for index in found) for name in "abc"} == dict.fromkeys("abc", CASES)
