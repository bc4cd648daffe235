"""The cases that the page of ``ckpt view`` has to pass as well (tests/analysis/page/test_patterns.py)."""

from __future__ import annotations

import pytest

from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.renaming import KeyMatcher

from .cases import CASES, Case


@pytest.mark.parametrize("case", [case for case in CASES if not case.error], ids=lambda case: ascii(case.pattern))
def test_a_pattern_matches_its_keys_alone_and_among_others(case: Case) -> None:
    pattern = KeyPattern(case.pattern)
    matcher = KeyMatcher([pattern])
    assert {key: pattern.matches(key) for key in case.keys} == case.keys
    assert {key: bool(matcher.match(key)) for key in case.keys} == case.keys


@pytest.mark.parametrize("case", [case for case in CASES if case.error], ids=lambda case: ascii(case.pattern))
def test_what_is_no_pattern_is_refused_in_these_words(case: Case) -> None:
    with pytest.raises(PatternError) as caught:
        KeyPattern(case.pattern)
    assert (caught.value.message, caught.value.hint) == (case.error, case.hint)


def test_there_is_a_case_of_each_kind() -> None:
    assert len(CASES) > 300
    assert len({case.pattern for case in CASES}) == len(CASES)
    assert all(case.error or case.keys for case in CASES)
