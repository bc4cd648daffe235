"""Which bytes are there."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.storage.read._intervals import Intervals, cut, joined

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=12)


@given(RANGES, st.integers(0, 60), st.integers(0, 60))
def test_intervals_are_a_set_of_bytes(ranges: list[tuple[int, int]], a: int, b: int) -> None:
    held, bytes_ = Intervals(), set[int]()
    for begin, end in ranges:
        held.add(begin, end)
        bytes_ |= set(range(begin, end))
    kept = list(held)
    assert {at for begin, end in kept for at in range(begin, end)} == bytes_
    assert all(one[1] < other[0] for one, other in pairwise(kept))
    begin, end = sorted((a, b))
    missing = held.missing(begin, end)
    assert [at for one in missing for at in range(*one)] == [at for at in range(begin, end) if at not in bytes_]


@given(RANGES, st.integers(0, 10))
def test_joined_ranges_hold_all_and_lie_apart(ranges: list[tuple[int, int]], gap: int) -> None:
    found = joined(ranges, gap)
    assert all(any(one[0] <= begin and end <= one[1] for one in found) for begin, end in ranges)
    assert all(other[0] - one[1] > gap for one, other in pairwise(found))


def test_long_ranges_are_cut() -> None:
    assert cut([(0, 10), (20, 22)], 4) == [(0, 4), (4, 8), (8, 10), (20, 22)]
