"""Lines that are broken where a reader would break them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from ckptsurgeon.render.columns import Columns, hanging, notes_view
from ckptsurgeon.util.note_kind import NoteKind
from ckptsurgeon.util.notes import Note, with_prefix


def lines(text: str, width: int, first: int = 0, rest: int = 0) -> list[str]:
    return [line.plain for line in hanging(Text(text), width, first=first, rest=rest)]


def printed(view: object, width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(view)
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 9, ["one two", "three"]),
        ("one  two", 5, ["one", "two"]),
        ("{bias_hh_l0,bias_hh_l0_reverse}", 20, ["{bias_hh_l0,", "bias_hh_l0_reverse}"]),
        ("encoder.layers.0.weight", 20, ["encoder.layers.0.", "weight"]),
        ("in_proj_weight", 10, ["in_proj_", "weight"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("文" * 12, 10, ["文" * 5, "文" * 5, "文" * 2]),
        ("slice (30, 4) to (10, 4)", 14, ["slice (30, 4)", "to (10, 4)"]),
        ("slice (30, 4) to (10, 4)", 10, ["slice", "(30, 4) to", "(10, 4)"]),
        ("see (what never ends and goes on", 12, ["see (what", "never ends", "and goes on"]),
        ("", 10, [""]),
    ],
)
def test_lines_break_at_blanks_then_commas_then_dots(text: str, width: int, expected: list[str]) -> None:
    assert lines(text, width) == expected


@pytest.mark.parametrize("width", [60, 80, 120])
def test_notes_hang_and_end_without_blanks(width: int) -> None:
    found = printed(notes_view(["a note of many words " * 12, "short"]), width)
    assert found[0].startswith("note: a note")
    assert all(line.startswith("      ") for line in found[1:-1])
    assert found[-1] == "note: short"
    assert all(line == line.rstrip() and len(line) <= width for line in found)


def test_columns_are_aligned_and_the_last_goes_on_below() -> None:
    rows = [["a", "1", "short"], ["bbb", "22", "words that need more than one line of this table to be said"]]
    assert printed(Columns(rows, right=[1]), 50) == [
        "  a     1  short",
        "  bbb  22  words that need more than one line of",
        "           this table to be said",
    ]


def test_a_last_column_with_no_room_goes_below_its_row() -> None:
    rows = [["a" * 22, "words that need more than there is"], ["b", "few"]]
    assert printed(Columns(rows), 50) == [
        "  " + "a" * 22,
        "      words that need more than there is",
        f"  b{' ' * 23}few",
    ]


def test_a_cell_that_is_too_long_for_a_column_does_not_widen_it() -> None:
    rows = [["a" * 70, "1", "all"], ["b", "22", "some"]]
    assert printed(Columns(rows, right=[1]), 50) == ["  " + "a" * 48, "  " + "a" * 22, "      1  all", "  b  22  some"]
    rows = [["FAIL", "k.weight", "differs"], ["FAIL", "key." * 10 + "weight", "has another checksum"]]
    assert printed(Columns(rows), 60) == [
        "  FAIL  k.weight  differs",
        "  FAIL  key.key.key.key.key.key.key.key.key.key.weight",
        "                  has another checksum",
    ]


@pytest.mark.parametrize("path", ["", "m.safetensors: "])
def test_notes_on_models_that_do_not_load_are_warnings(path: str) -> None:
    notes = [
        "a text without a kind",
        Note(NoteKind.REMARK, "the state dict model is used"),
        Note(NoteKind.PREFIXED_KEYS, "every key begins with module.: from_pretrained initialises all of them"),
        Note(NoteKind.BROKEN_CODES, "q_proj.weight lacks weight_scale, which 3 similar tensors have"),
    ]
    view = notes_view(with_prefix(path, note) for note in notes)
    labels = [line.partition(": ")[0] for line in printed(view, 120)]
    assert labels == ["note", "note", "warning", "warning"]
