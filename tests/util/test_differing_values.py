"""Texts of two values that differ: of long lists and dicts, the first entry that does."""

from __future__ import annotations

from typing import Any

import pytest

from ckptsurgeon.util.differing_values import texts_apart

IDS = [1, 2, 7, 8, 9, 10, 14, 25, 26]
NAMES = {f"<|{one}|>": row for row, one in enumerate(("en", "zh", "de", "es", "ru", "ko"))}


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [
        (2, [2, 7], ("2", "[2, 7]")),
        ([2, 8], [2, 7], ("[2, 8]", "[2, 7]")),
        (None, IDS, ("null", "[1, 2, 7, 8, 9, 10, ...]")),
        (IDS, [*IDS[:7], 24, 26], ("25 at [7]", "24 at [7]")),
        (IDS, [*IDS[:7], 24, 27, 28], ("25 at [7] and 1 more", "24 at [7] and 1 more")),
        (IDS, IDS[:7], ("a list of 9 values", "a list of 7 values")),
        (["attention" * 4, "b"], ["attention" * 4, "c"], ("b at [1]", "c at [1]")),
        (NAMES, NAMES | {"<|de|>": 7}, ("2 at ['<|de|>']", "7 at ['<|de|>']")),
        (NAMES, NAMES | {"<|fr|>": 7}, ("not set at ['<|fr|>']", "7 at ['<|fr|>']")),
        ({"a": IDS, "b": 1}, {"a": [*IDS, 3], "b": 1}, ("a list of 9 values at ['a']", "a list of 10 values at ['a']")),
        ({"a": IDS, "b": IDS, "c": 1}, {"a": IDS, "b": [*IDS[:8], 3], "c": 2},
         ("26 at ['b'][8] and 1 more", "3 at ['b'][8] and 1 more")),
    ],
)  # fmt: skip
def test_two_values_are_told_apart(one: Any, other: Any, texts: tuple[str, str]) -> None:
    assert texts_apart(one, other) == texts
    assert texts_apart(other, one) == texts[::-1]


def test_two_long_texts_are_shown_where_they_differ() -> None:
    one, other = texts_apart("M-" * 40 + "*M" * 9, "M-" * 40 + "MM" * 9)
    assert one.startswith("…M-M-M-M-M-*M")
    assert other.startswith("…M-M-M-M-M-MM")
    assert texts_apart("ab", "a" * 61)[0] == "ab"
