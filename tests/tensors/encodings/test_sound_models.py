"""Of sound quantised models, no note is given that names a fault of parts, layouts or settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ckptsurgeon as cs
from tests.checkpoint import test_cast_parts

from ...helpers.zoo import ZOO, Quantised
from . import test_missing_parts, test_sizes_and_schemes, test_unknown_layouts, test_unlike, test_whole_set
from .test_missing_parts import THREE

FAULTS = (test_missing_parts, test_unknown_layouts, test_whole_set)


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_nothing_is_said_of_sound_models(one: Quantised, tmp_path: Path) -> None:
    found = cs.inspect(one.folder(tmp_path / "m"))
    assert not [note for fault in FAULTS for note in fault.said(found)]
    assert not [note for note in test_sizes_and_schemes.said(found) if "does not fit" in note]
    assert not test_cast_parts.said(found.notes)


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_nor_of_those_with_three_layers(one: Quantised, tmp_path: Path) -> None:
    found = cs.inspect(replace(one, layers=THREE).folder(tmp_path / "m"))
    assert not [note for fault in (*FAULTS, test_unlike) for note in fault.said(found)]
