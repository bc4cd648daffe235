"""Healthy models, as transformers initialises and saves them, pass: a sample here, all families in the long tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs

from .families import FAMILIES, SAMPLE, save_small

pytest.importorskip("transformers")


def check_family(kind: str, folder: Path) -> None:
    report = cs.check(save_small(kind, folder))
    found = {row.id: [one.what for one in row.found] for row in report.rows if row.found}
    assert not found
    assert report.row("configuration").status.value == "PASS"


@pytest.mark.costly
@pytest.mark.parametrize("kind", SAMPLE)
def test_a_new_model_passes(kind: str, tmp_path: Path) -> None:
    check_family(kind, tmp_path / "model")


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - set(SAMPLE)))
def test_a_new_model_of_any_family_passes(kind: str, tmp_path: Path) -> None:
    check_family(kind, tmp_path / "model")


def test_there_are_forty_families() -> None:
    assert len(FAMILIES) >= 40
