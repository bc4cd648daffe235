"""The rows of renamed tensors in the table of a difference: each pattern can be read in one way only."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest
from rich.console import Console

from ckptsurgeon.analysis.compare.results import Difference
from ckptsurgeon.render.diff import difference_view


def rows(renamed: Mapping[str, str]) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=120, highlight=False).print(
        difference_view(Difference("a", "b", values=True, renamed=renamed))
    )
    return [" ".join(line.split()).removeprefix("renamed ") for line in text.getvalue().splitlines()]


@pytest.mark.parametrize(
    "renamed",
    [
        {"l.0.w": "b.1.2.w", "l.1.w": "b.1.1.w", "l.2.w": "b.0.1.w", "l.3.w": "b.0.2.w"},
        {"l.0.w": "b.0.1.w", "l.1.w": "b.1.0.w"},
        {"l.0.w": "b.1.0.w", "l.1.w": "b.0.1.w"},
        {"l.0.0.w": "l.2.1.w", "l.1.1.w": "l.0.0.w", "l.2.0.w": "l.1.2.w"},
    ],
)
def test_names_that_no_pattern_can_tell_have_a_row_each(renamed: Mapping[str, str]) -> None:
    assert sorted(rows(renamed)[: len(renamed)]) == [f"{old} {new}" for old, new in renamed.items()]


def test_a_list_shows_the_new_names_where_one_number_varies() -> None:
    assert rows({"l.0.w": "l.2.w", "l.1.w": "l.0.w", "l.2.w": "l.1.w"})[0] == "l.{0..2}.w l.{2,0,1}.w x 3"
    swapped = {f"l.{i}.e.{j}.w": f"l.{1 - i}.e.{j}.w" for i in range(2) for j in range(2)}
    assert rows(swapped)[:2] == [f"l.{{0,1}}.e.{j}.w l.{{1,0}}.e.{j}.w x 2" for j in range(2)]


def test_every_combination_in_order_is_one_row() -> None:
    both = {f"l.{i}.e.{j}.w": f"b.{i}.m.{j}.w" for i in range(3) for j in range(2)}
    assert rows(both)[0] == "l.{0..2}.e.{0,1}.w b.{0..2}.m.{0,1}.w x 6"
    split = {f"l.{i}.w": f"s.{i // 2}.{i % 2}.w" for i in range(6)}
    assert rows(split)[0] == "l.{0..5}.w s.{0..2}.{0,1}.w x 6"
