"""The folders that real ranks have saved, which takes seconds, and so is done once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.ranks import saved
from tests.helpers.torch_versions import skip_without_uneven_shards


@pytest.fixture(scope="session")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without_uneven_shards()
    folder = tmp_path_factory.mktemp("ranks")
    saved(str(folder))
    return folder


@pytest.fixture
def layout(ranks_folder: Path) -> Callable[[str], Path]:
    """Copy the folder of a layout into the working directory as ``d``; the result has what its tensors should be."""

    def copied(name: str) -> Path:
        shutil.copytree(ranks_folder / name, "d", ignore=shutil.ignore_patterns("whole.st"))
        return ranks_folder / name / "whole.st"

    return copied
