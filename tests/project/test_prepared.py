"""Processes that test together share out what the first run in a checkout prepares."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion import rewrite

from ..helpers.prepared import NONE_YET, prepare_a_share


def of_process(number: int, config: pytest.Config, folder: Path) -> Any:
    """The configuration of one of two processes that test a folder."""
    told = {"workerid": f"gw{number}", "workercount": 2, NONE_YET: False}
    asked = SimpleNamespace(dir=folder.parent)
    return SimpleNamespace(
        workerinput=told, args=[folder.name], invocation_params=asked, stash=config.stash, getini=config.getini
    )


def kept(path: Path) -> object:
    """What pytest finds of an earlier run when it imports a file of tests."""
    return rewrite._read_pyc(path, rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL))


def test_each_process_rewrites_other_files_and_pytest_finds_them(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    paths = [tmp_path / "some" / f"test_{name}.py" for name in "abc"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text("def test_it():\n    assert 1 + 1 == 2\n")
    prepare_a_share(of_process(1, pytestconfig, paths[0].parent))
    assert [kept(path) is not None for path in paths] == [False, True, False]
    prepare_a_share(of_process(0, pytestconfig, paths[0].parent))
    assert all(kept(path) is not None for path in paths)
    paths[0].write_text("def test_it():\n    assert 1 + 1 == 3\n")
    assert kept(paths[0]) is None  # a file that has changed is rewritten anew
