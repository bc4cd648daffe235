"""``make test-matrix``: which Python gets which torch, and that the project says what is tested."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.matrix import SUBSET, SUPPORTED, Cell, cells, constraints, oldest_torch, pythons, tried

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_oldest_python_gets_the_oldest_torch_and_the_newest_the_newest() -> None:
    found = {"3.11": "a", "3.12": "b", "3.13": "c"}
    made = cells(found, torch=None, oldest="2.6.0", pinned="2.13.0")
    assert made == [Cell("3.11", "a", "2.6.0"), Cell("3.12", "b", "2.13.0"), Cell("3.13", "c", "newest")]
    assert [one.torch for one in cells({"3.12": "b"}, torch=None, oldest="2.6.0", pinned="2.13.0")] == ["newest"]
    assert {one.torch for one in cells(found, torch="2.11.0", oldest="2.6.0", pinned="2.13.0")} == {"2.11.0"}
    assert oldest_torch(PROJECT) == "2.6.0"


def test_this_python_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENV_ROOT", "none")
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)
    assert pythons(["3.1", HERE]) == {HERE: sys.executable}


def test_the_project_names_the_versions_that_are_tested() -> None:
    named = [
        one.rpartition(" ")[2]
        for one in PROJECT["classifiers"]
        if one.startswith("Programming Language :: Python :: 3.")
    ]
    assert named == list(SUPPORTED)
    assert PROJECT["requires-python"] == f">={SUPPORTED[0]}"
    assert "torch" in constraints()


def test_what_is_tested_is_there() -> None:
    assert [one for one in SUBSET if not (ROOT / one).exists()] == []


def test_a_python_that_has_no_environment_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.matrix.ROOT", tmp_path)  # not that of a matrix that is being tested
    broken = Cell("3.12", "false", "2.6.0")
    assert tried(broken, (), (), keep=False) == "could not be installed"
