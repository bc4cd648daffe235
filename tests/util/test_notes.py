"""Notes carry their kind from where they are written, through prefixes, copies, processes and JSON."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptsurgeon
from ckptsurgeon.analysis.check.running import all_checks
from ckptsurgeon.storage.yaml_text import dump_yaml, read_yaml
from ckptsurgeon.util.note_kind import NoteKind
from ckptsurgeon.util.notes import (
    Note,
    is_serious,
    notes_about,
    notes_of,
    serious_places,
    with_prefix,
    with_serious,
    without_prefix,
)

GAP = Note(NoteKind.LAYER_GAP, "layers has layers 0 to 5, but no tensor of layer 3")


def test_a_note_is_equal_to_its_text() -> None:
    text = str(GAP)
    assert (GAP, hash(GAP)) == (text, hash(text))
    assert list(dict.fromkeys([GAP, text])) == [text]
    assert json.loads(json.dumps({"notes": [GAP]})) == {"notes": [text]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_note_that_is_sent_to_another_process_keeps_its_kind(protocol: int) -> None:
    sent = pickle.loads(pickle.dumps(GAP, protocol)) if protocol > 1 else copy.deepcopy(GAP)
    assert (sent, sent.kind) == (GAP, NoteKind.LAYER_GAP)


@pytest.mark.parametrize("text", ["no tensor of layer 3", "a: b", "12", "two\nlines"])
def test_a_note_is_written_as_yaml_like_its_text(text: str) -> None:
    written = dump_yaml({"notes": [Note(NoteKind.LAYER_GAP, text)]})
    assert written == dump_yaml({"notes": [text]})
    assert read_yaml(written, "x.yaml") == {"notes": [text]}


def test_a_prefix_keeps_the_kind() -> None:
    there = with_prefix("a.safetensors: ", GAP)
    assert (there, there.kind) == (f"a.safetensors: {GAP}", NoteKind.LAYER_GAP)
    back = without_prefix("a.safetensors: ", there)
    assert (back, back.kind) == (GAP, NoteKind.LAYER_GAP)
    assert with_prefix("a: ", "b") == "a: b"
    assert not isinstance(with_prefix("a: ", "b"), Note)
    assert [one.kind for one in notes_about("x.pth", [GAP])] == [NoteKind.LAYER_GAP]


def test_a_decorated_function_makes_notes_of_its_texts() -> None:
    @notes_of(NoteKind.TOKEN_IDS)
    def found() -> Iterator[str]:
        yield "an id"
        yield GAP

    @notes_of(NoteKind.TOKEN_IDS)
    def listed() -> list[str]:
        return ["an id"]

    assert [(str(one), one.kind) for one in found()] == [("an id", NoteKind.TOKEN_IDS), (str(GAP), GAP.kind)]
    assert [one.kind for one in listed()] == [NoteKind.TOKEN_IDS]


def test_only_failures_are_serious() -> None:
    assert is_serious(GAP)
    assert not is_serious(str(GAP))
    assert not is_serious(Note(NoteKind.TOKEN_IDS, "an id"))


def test_serious_notes_are_serious_again_after_json() -> None:
    notes = ("a remark", GAP, Note(NoteKind.TOKEN_IDS, "an id"))
    data = json.loads(json.dumps({"notes": list(notes), "places": serious_places(notes)}))
    assert data == {"notes": [*map(str, notes)], "places": [1]}
    back = list(with_serious(data["notes"], data["places"]))
    assert back == list(notes)
    assert [is_serious(note) for note in back] == [False, True, False]


def test_every_kind_belongs_to_a_check() -> None:
    known = {one.id for one in all_checks()}
    assert {kind.check for kind in NoteKind} - {""} <= known
    assert len(NoteKind) == len(NoteKind.__members__)  # no kind is another name of a kind


def f_strings_of_notes(tree: ast.AST) -> list[int]:
    """The lines of f-strings that contain a variable ``note`` after other text: such a string has no kind."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and any(
            isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id == "note"
            for part in node.values[1:]
        )
    ]


def lines_of_notes(text: str) -> list[int]:
    """As above; to parse a module takes a hundred times as long as to see that it has no such variable in braces."""
    return f_strings_of_notes(ast.parse(text)) if re.search(r"\{\s*note\b", text) else []


def test_no_prefix_takes_the_kind_from_a_note() -> None:
    """Types do not notice that: a plan may have plain texts, too. Comments and lines of the command line have no kind."""
    assert f_strings_of_notes(ast.parse('f"{path}: {note}"; f"{note}: x"; with_prefix(f"{path}: ", note)')) == [1]
    root = Path(ckptsurgeon.__file__).parent
    found = {
        str(path.relative_to(root)): lines
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != "cli" and (lines := lines_of_notes(path.read_text()))
    }
    assert found.keys() == {"util/notes.py", "api/inspect.py"}  # a comment in a configuration
