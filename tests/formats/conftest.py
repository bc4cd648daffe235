"""What the tests of formats break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..helpers.tensorflow_files import GOLDEN


@pytest.fixture
def stt() -> Path:
    """A copy of the folder that Coqui's training left, to be broken."""
    return Path(shutil.copytree(GOLDEN / "stt", "stt"))
