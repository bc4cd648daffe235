"""How deep the tests go: ``make test-all`` sets CKPT_TESTS=full, and tries almost every case; ``make test`` tries fewer.

What is tried fewer times is what chance or counting makes more of: examples of a property, positions of a flipped bit,
moments of a kill. What is marked ``long`` is left to ``make test-all``. Of a test with many cases ``make test`` tries the
first and the last, of one marked ``costly`` a single one. It tries each case of a promise (``clause``), and each case of a
rule (``RULES`` in conftest.py) unless the test is marked ``costly``.
Of a test with three lists of parameters or more, ``make test-all`` tries each pair of values, not each combination.
``make test-turn`` sets CKPT_TURN=3/12 or the like besides, and tries the files of one of twelve turns.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from itertools import count
from typing import Any, TypeVar
from zlib import crc32

import pytest
from hypothesis import settings

__all__ = [
    "CASES", "COSTLY_CASES", "FULL", "SHARE", "TURN", "covering", "each_in_turn", "evenly_spaced", "examples_of",
    "has_its_turn", "in_array", "shared_out", "some_of", "times",
]  # fmt: skip

FULL = os.environ.get("CKPT_TESTS") == "full"
TURN = os.environ.get("CKPT_TURN", "")
"""Which files are tested, such as ``3/12``: those of the fourth of twelve turns."""
SHARE = 8
"""Of how many cases ``make test`` tries one."""

CASES = 2
"""How many cases of one test ``make test`` tries at most."""

COSTLY_CASES = 1
"""How many cases of a test that is marked ``costly``: one whose cases take a tenth of a second or more."""

One = TypeVar("One")
Test = TypeVar("Test", bound=Callable[..., Any])
Pair = TypeVar("Pair", bound=tuple[Any, ...])


def has_its_turn(file: str, turn: str = TURN) -> bool:
    """Return whether the tests of a file are run in a turn, such as ``3/12``; without one, all are."""
    if not turn:
        return True
    number, turns = map(int, turn.split("/"))
    return crc32(file.encode()) % turns == number


def times(full: int) -> int:
    """Return how often something is tried that chance makes: ``full`` times, or a share of that, and at least twice."""
    return full if FULL else max(2, full // SHARE)


def examples_of(full: int) -> settings:
    """Return the settings of a property that is tried on ``full`` examples, or on a share of them, and at least ten."""
    return settings(max_examples=full if FULL else max(10, full // SHARE))


def some_of(cases: Sequence[One], first: int = 0) -> list[One]:
    """Return all cases, or each so many-th from ``first`` on."""
    return list(cases) if FULL else list(cases[first % max(len(cases), 1) :: SHARE])


def shared_out(cases: Sequence[Pair], alike: Callable[[Pair], Hashable], share: int = 3) -> list[Pair]:
    """Return a third of the pairs that are alike, at least one: those whose first element is in the fewest others so far.

    For a product of two lists, such as networks and ways to change them, of which many pairs run the same code: each
    kind of pair stays, and each element of both lists. ``make test`` takes two of all pairs, as of any cases.
    """
    if not FULL:
        return list(cases)
    groups = defaultdict[Hashable, list[Pair]](list)
    for case in cases:
        groups[alike(case)].append(case)
    used: Counter[Hashable] = Counter()
    kept = []
    for group in sorted(groups.values(), key=len):
        for case in sorted(group, key=lambda case: used[case[0]])[: -(-len(group) // share)]:
            used[case[0]] += 1
            kept.append(case)
    return [case for case in cases if case in kept]


def covering(cases: Sequence[One], facts: Callable[[One], Iterable[Hashable]]) -> list[One]:
    """Return the cases that are the first with one of their facts: together they have each fact that any case has."""
    seen = set[Hashable]()
    kept = []
    for case in cases:
        own = {*facts(case)}
        if not own <= seen:
            kept.append(case)
            seen |= own
    return kept


def each_in_turn(name: str, cases: Sequence[Any], share: int = 3) -> Callable[[Test], Test]:
    """Return a decorator that gives a test a third of the cases, and the next test another third: all in ``make test``.

    For many tests of the same cases, as of all verbs with all encodings: each verb gets some, and each case many verbs.
    """
    number = count()

    def decorate(test: Test) -> Test:
        some = list(cases)[next(number) % share :: share] if FULL else list(cases)
        decorated: Test = pytest.mark.parametrize(name, some, ids=lambda one: getattr(one, "name", str(one)))(test)
        return decorated

    return decorate


def in_array(number: int, sizes: Sequence[int], strength: int = 2) -> bool:
    """Return whether to try a case of a product of lists: each pair of values is in one of those that are tried.

    ``number`` is that of the case, whose last list changes first. Of three lists or more, of which one has two values,
    each second case is tried, else each third. Of two lists all are tried, as each case is another pair; with a
    ``strength`` of 1, each value of both is in a case that is tried, which takes one case of as many as the shorter list
    has values, but not fewer than each sixth.
    """
    chosen = []
    for size in reversed(sizes):
        number, index = divmod(number, size)
        chosen.append(index)
    sizes = [size for size in sizes if size > 1]
    return number != 0 or len(sizes) <= strength or sum(chosen) % min(3 if strength > 1 else 6, *sizes) == 0


def evenly_spaced(names: Sequence[str], costly: Container[str] = ()) -> set[int]:
    """Return the indices of the cases to try: of those with one name at most ``CASES``, from the first to the last.

    Of those with a costly name one is tried, which the name chooses: the same one whatever else is collected.
    """
    found = defaultdict[str, list[int]](list)
    for index, name in enumerate(names):
        found[name].append(index)
    kept = set[int]()
    for name, of in found.items():
        if name in costly:
            step = max(1, len(of) // COSTLY_CASES)
            kept |= {*of[crc32(name.encode()) % step :: step][:COSTLY_CASES]}
        else:
            number = min(len(of), CASES)
            kept |= {of[place * (len(of) - 1) // max(number - 1, 1)] for place in range(number)}
    return kept
