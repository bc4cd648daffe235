"""TensorBoard's events: what ends their writer's thread is an error of the logger, raised once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.loggers._logger import LoggedRun, Summary
from ckptsurgeon.trainer.loggers.tensorboard import TensorBoard

pytest.importorskip("tensorboard")

FULL = """
import resource, signal, sys
sys.dont_write_bytecode = True
from ckptsurgeon.trainer.loggers._logger import LoggedRun
from ckptsurgeon.trainer.loggers.tensorboard import TensorBoard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
events = TensorBoard(LoggedRun("a", "."))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    for step in range(1, 10000):
        events.write([{"step": step, "loss": 1.0, "parts": {"ctc": 2.0}}])
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.long
def test_a_disk_that_is_full_is_told_once() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("OutputError: cannot write "), done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir("events")


def test_threads_of_others_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    TensorBoard(LoggedRun("a", ".", step=3)).finish(Summary({}))
    TensorBoard(LoggedRun("a", ".", step=4)).finish(Summary({}))
    mine = SimpleNamespace(thread=threading.Thread())
    threading.excepthook(mine)  # type: ignore[arg-type]
    assert told == [mine]


def test_a_folder_that_cannot_be_made_is_an_output_error() -> None:
    open("events", "w").close()
    with pytest.raises(cs.OutputError, match="events"):
        TensorBoard(LoggedRun("a", "."))
