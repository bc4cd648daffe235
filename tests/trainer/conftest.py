"""What the tests of the trainer can use."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.run.records import curves_png

from ..helpers.nursery import run_apart, with_torch
from .toy import init, source

__all__ = ["another_process", "cheap", "curves", "draw_once", "init", "new_process", "reopen_here", "source"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin what takes longest first: with two processes the other one would wait for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that train again or start a process, and without TensorBoard's import."""
    from ckptsurgeon.trainer.loggers.tensorboard import TensorBoard
    from ckptsurgeon.trainer.run import run_job as running

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("cheap", "NOT RUN", "a test")])
    monkeypatch.setattr(TensorBoard, "is_automatic", False)


@pytest.fixture
def new_process() -> None:
    """Let the check of what was saved start the process that it starts, which begins by importing torch."""


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process say what is in saved weights: one that is forked, and knows nothing of this one."""
    there = SimpleNamespace(run=_apart, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("ckptsurgeon.trainer.checks.saved.subprocess", there)


def _apart(command: list[str], *, input: str, cwd: str | None, **_: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ckptsurgeon.trainer.checks.saved`` in a process that has imported torch already."""
    name = "ckptsurgeon.trainer.checks.saved"
    assert command == [sys.executable, "-m", name]
    program = f"import io, sys\nfrom {name} import main\nsys.stdin = io.StringIO({input!r})\nmain()"
    return run_apart(program, folder=cwd or ".", nursery=with_torch())


@pytest.fixture(autouse=True)
def _reopened_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process say what another would of saved weights, where a test does not ask for another one."""
    if not {"another_process", "new_process"} & {*request.fixturenames}:
        reopen_here(monkeypatch)


def reopen_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process say what another would of saved weights: that begins by importing torch, for seconds."""
    here = SimpleNamespace(run=_again, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("ckptsurgeon.trainer.checks.saved.subprocess", here)


def _again(command: list[str], *, input: str, cwd: str | None, **_: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ckptsurgeon.trainer.checks.saved``, and leave the random state as it was."""
    from ckptsurgeon.trainer.checks import saved as again
    from ckptsurgeon.trainer.system.random_state import preserve_random_state

    assert command == [sys.executable, "-m", again.__name__]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        preserve_random_state(),
        chdir(cwd or os.curdir),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", io.StringIO(input))
        try:
            again.main()
        except Exception as error:
            err.write(f"{type(error).__name__}: {error}\n")
            code = 1
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture
def curves() -> None:
    """Let each run draw its own curves, which takes as long as a toy trains."""


@pytest.fixture(autouse=True)
def _curves_of_one_kind_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves of one log of each kind, and give others of that kind the same picture, if no ``curves`` are asked."""
    if "curves" not in request.fixturenames:
        draw_once(monkeypatch)


def draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves of one log of each kind, and give others of that kind the same picture."""
    monkeypatch.setattr("ckptsurgeon.trainer.run.records.curves_png", _picture)


def _picture(rows: Sequence[Mapping[str, Any]], metric: str, *, title: str = "", best_step: int = 0) -> bytes | None:
    """Return a picture of the same kind: as many curves, with or without what is missing, is not finite or is best."""
    steps = [row for row in rows if row.get("loss") is not None]
    figures = [value for row in steps for value in (row["loss"], row["grad_norm"], *row["lr"].values())]
    found = {row["step"]: row["dev"][metric] for row in rows if metric in row.get("dev", {})}
    drawn = Drawn(
        rows, metric, title, best_step,
        kind=(
            importlib.util.find_spec("matplotlib") is None, bool(steps), len(steps) == 1, len(steps) > 20,
            *{frozenset(row["lr"]) for row in steps[-1:]}, None in figures,
            all(math.isfinite(value) for value in figures if value is not None),
            min(len(found), 2), None in found.values(), best_step in found, "$" in title,
        ),
    )  # fmt: skip
    return _drawn(drawn)


@dataclass(frozen=True)
class Drawn:
    """What is drawn; two of one kind are equal."""

    rows: Sequence[Mapping[str, Any]] = field(compare=False)
    metric: str
    title: str = field(compare=False)
    best_step: int = field(compare=False)
    kind: tuple[object, ...]


@cache
def _drawn(what: Drawn) -> bytes | None:
    return curves_png(what.rows, what.metric, title=what.title, best_step=what.best_step)
