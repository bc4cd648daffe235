"""What the tests of formats break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..helpers.format_marks import held_marks
from ..helpers.tensorflow_files import GOLDEN

__all__ = ["held_marks"]


@pytest.fixture(autouse=True)
def _each_source_is_held_against_the_marks(held_marks: None) -> None:
    """The table rules out no format that would read what a test opens."""


@pytest.fixture
def stt() -> Path:
    """A copy of the folder that Coqui's training left, to be broken."""
    return Path(shutil.copytree(GOLDEN / "stt", "stt"))
