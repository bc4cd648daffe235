"""What ``CKPT_TESTS=full`` leaves out of products of lists: never a value, and of three lists never a pair."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest

from ..helpers import depth
from ..helpers.depth import evenly_spaced, in_array, shared_out


def tried(sizes: tuple[int, ...], strength: int = 2) -> list[tuple[int, ...]]:
    cases = list(product(*map(range, sizes)))
    return [case for number, case in enumerate(cases) if in_array(number, sizes, strength)]


@pytest.mark.parametrize("sizes", [(14, 5, 6), (3, 16, 3), (4, 7, 5), (14, 7, 2), (2, 4, 2, 6), (5, 3, 1, 3)])
def test_each_pair_of_values_is_tried(sizes: tuple[int, ...]) -> None:
    found = tried(sizes)
    assert len(found) <= len(list(product(*map(range, sizes)))) * 0.51
    for one, other in combinations(range(len(sizes)), 2):
        assert {(case[one], case[other]) for case in found} == set(product(range(sizes[one]), range(sizes[other])))


@pytest.mark.parametrize("sizes", [(4,), (6, 16), (1, 5, 4), (2, 1, 2)])
def test_of_two_lists_each_case_is_another_pair(sizes: tuple[int, ...]) -> None:
    assert tried(sizes) == list(product(*map(range, sizes)))


@pytest.mark.parametrize("sizes", [(6, 16), (3, 5), (2, 24), (60, 4)])
def test_or_each_value_alone_is_tried(sizes: tuple[int, ...]) -> None:
    found = tried(sizes, strength=1)
    assert len(found) <= sizes[0] * sizes[1] / 2
    assert [{case[one] for case in found} for one in (0, 1)] == [set(range(size)) for size in sizes]


def test_of_costly_tests_one_case_is_tried_whatever_else_is_collected() -> None:
    names = [name for name in "abcd" for _ in range(8)]
    kept = evenly_spaced([*names, "e", "f", "f"], costly="abce")
    assert [index // 8 for index in sorted(kept) if index < 24] == [0, 1, 2]
    assert [index for index in sorted(kept) if index >= 24] == [24, 31, 32, 33, 34]
    alone = {index % 8 for name in "abc" for index in evenly_spaced([name] * 8, costly="abc")}
    assert alone == {index % 8 for index in kept if index < 24}
    assert len(alone) > 1


def test_of_cases_that_are_alike_a_third_is_tried_of_each_first_element_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [*product("abcdefghi", range(6)), ("z", 9)]
    assert shared_out(cases, lambda case: case[1]) == cases or depth.FULL
    monkeypatch.setattr(depth, "FULL", True)
    found = shared_out(cases, lambda case: case[1])
    assert Counter(number for _, number in found) == {**dict.fromkeys(range(6), 3), 9: 1}
    assert Counter(letter for letter, _ in found) == {**dict.fromkeys("abcdefghi", 2), "z": 1}
    assert found == sorted(found)
