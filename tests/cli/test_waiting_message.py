"""The line on what a command waits for: it appears after a time, in a terminal alone, and leaves nothing behind."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from ckptsurgeon.cli import waiting_message
from ckptsurgeon.cli.verbs import fits as verb
from ckptsurgeon.cli.waiting_message import WaitingLine

from ..helpers.waiting import wait_until


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_the_line_appears_after_its_time_and_is_removed() -> None:
    screen = console()
    line = WaitingLine(lambda: "building the class", screen, after_s=0)
    wait_until(lambda: "building the class" in text(screen))
    line.stop()
    assert text(screen).endswith("\x1b[2K")  # the last thing is to erase the line


def test_work_that_ends_before_shows_nothing() -> None:
    screen = console()
    line = WaitingLine(lambda: "building the class", screen, after_s=3600)
    line.stop()
    assert text(screen) == ""
    wait_until(lambda: not any(isinstance(one, threading.Timer) and one.is_alive() for one in threading.enumerate()))


@pytest.mark.parametrize("options", [(), ("-q",), ("--json",)])
def test_fits_says_what_it_waits_for_in_a_terminal_alone(
    options: tuple[str, ...], ckpt: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    shown: list[str] = []

    class Line:
        def __init__(self, what: Any, *args: object) -> None:
            shown.append(what())

        def stop(self) -> None:
            shown.append("stopped")

    monkeypatch.setattr(waiting_message, "WaitingLine", Line)
    np.savez("a.npz", w=np.zeros(3))
    assert ckpt("fits", "a.npz", "a.npz", *options).code == 0
    assert shown == []
    with terminal(monkeypatch):
        ckpt("fits", "a.npz", "a.npz", *options)
    assert shown == ([] if options else [verb._waits_for(), "stopped"])


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ckptsurgeon.cli import printing

    class Terminal:
        def __getattr__(self, name: str) -> Any:
            return getattr(sys.__stderr__, name)

        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as patch:
        patch.setattr(printing, "sys", type("Sys", (), {"stderr": Terminal(), "stdout": sys.stdout}))
        yield


def test_the_text_says_that_transformers_takes_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert verb._waits_for() == "reading headers"
    monkeypatch.setitem(sys.modules, "transformers", io)
    assert "transformers" in verb._waits_for()
