"""What the tests of the trainer can use."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest

from ckptsurgeon.trainer.checks.check import Check

from .toy import init, source

__all__ = ["another_process", "cheap", "init", "source"]


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
def another_process() -> None:
    """Let the check of what was saved start the process that it starts, which begins by importing torch."""


@pytest.fixture(autouse=True)
def _reopened_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process say what another would of saved weights, where a test does not ask for ``another_process``."""
    if "another_process" not in request.fixturenames:
        here = SimpleNamespace(run=_again, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr("ckptsurgeon.trainer.checks.reload.subprocess", here)


def _again(command: list[str], *, input: str, cwd: str | None, **_: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ckptsurgeon.trainer.checks.reload``, and leave the random state as it was."""
    from ckptsurgeon.trainer.checks import reload as again
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
