"""How deep the tests go: ``make test-all`` sets CKPT_TESTS=full, and tries every case; ``make test`` tries fewer of some.

What is tried fewer times is what chance or counting makes more of: examples of a property, positions of a flipped bit,
moments of a kill. Each rule has its cases in both. Of a test with many cases ``make test`` tries four, evenly spaced.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

__all__ = ["CASES", "FULL", "SHARE", "evenly_spaced", "examples_of", "some_of", "times"]

FULL = os.environ.get("CKPT_TESTS") == "full"
SHARE = 8
"""Of how many cases ``make test`` tries one."""

CASES = 4
"""How many cases of one test ``make test`` tries at most."""

One = TypeVar("One")


def times(full: int) -> int:
    """Return how often something is tried that chance makes: ``full`` times, or a share of that, and at least twice."""
    return full if FULL else max(2, full // SHARE)


def examples_of(full: int) -> settings:
    """Return the settings of a property that is tried on ``full`` examples, or on a share of them, and at least ten."""
    return settings(max_examples=full if FULL else max(10, full // SHARE))


def some_of(cases: Sequence[One], first: int = 0) -> list[One]:
    """Return all cases, or each so many-th from ``first`` on."""
    return list(cases) if FULL else list(cases[first % max(len(cases), 1) :: SHARE])


def evenly_spaced(names: Sequence[str], most: int = CASES) -> set[int]:
    """Return the indices of the cases to try: of those with one name at most so many, from the first to the last."""
    found = defaultdict[str, list[int]](list)
    for index, name in enumerate(names):
        found[name].append(index)
    return {
        of[place * (len(of) - 1) // max(min(len(of), most) - 1, 1)]
        for of in found.values()
        for place in range(min(len(of), most))
    }
