"""While one process collects, another prepares what the first run lacks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion import rewrite

from ..helpers.prepared import prepare


def of_folder(folder: Path, config: pytest.Config) -> Any:
    """The configuration of a process that tests a folder."""
    asked = SimpleNamespace(dir=folder.parent)
    return SimpleNamespace(args=[folder.name], invocation_params=asked, stash=config.stash, getini=config.getini)


def kept(path: Path) -> object:
    """What pytest finds of an earlier run when it imports a file of tests."""
    return rewrite._read_pyc(path, rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL))


def test_pytest_finds_what_was_rewritten(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    paths = [tmp_path / "some" / f"test_{name}.py" for name in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text("def test_it():\n    assert 1 + 1 == 2\n")
    assert not any(kept(path) for path in paths)
    prepare(of_folder(paths[0].parent, pytestconfig))
    assert all(kept(path) for path in paths)
    paths[0].write_text("def test_it():\n    assert 1 + 1 == 3\n")
    assert kept(paths[0]) is None  # a file that has changed is rewritten anew
