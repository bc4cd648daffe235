"""Healthy models, as transformers initialises and saves them, pass: a sample here, all families in the long tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.note_kinds import KINDS

from .families import FAMILIES, SAMPLE, save_small

pytest.importorskip("transformers")


def check_family(kind: str, folder: Path) -> None:
    report = cs.check(save_small(kind, folder))
    found = {row.id: [one.what for one in row.found] for row in report.rows if row.found}
    assert not found
    assert report.row("configuration").status.value == "PASS"


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_new_model_passes(kind: str, tmp_path: Path) -> None:
    check_family(kind, tmp_path / "model")


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - set(SAMPLE)))
def test_a_new_model_of_any_family_passes(kind: str, tmp_path: Path) -> None:
    check_family(kind, tmp_path / "model")


def test_there_are_forty_families() -> None:
    assert len(FAMILIES) >= 40


def test_a_word_in_a_token_does_not_decide_the_check() -> None:
    note = (
        "ids of special tokens that are ordinary words in the tokeniser: eos_token_id of config.json is 9 ('quantised')"
    )
    assert next(one for one in KINDS if one.pattern.search(note)).id == "token-ids"
