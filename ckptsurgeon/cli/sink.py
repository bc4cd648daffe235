"""Where a command's output goes: the answer to stdout, everything else to stderr, JSON or text."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CheckpointError
from ..text import escape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Jsonable", "Sink", "error_json", "error_text"]

AFTER_S = 1.0
"""Work that takes longer than this shows its progress."""


class Jsonable(Protocol):
    """A result of the API."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        ...


def _console(stream: Any) -> Console:
    from rich.console import Console

    width = None if stream.isatty() or "COLUMNS" in os.environ else 100
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False, width=width)


@dataclass
class Sink:
    """One command's output, as its options ask for it."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def answer(self, result: Jsonable | dict[str, Any]) -> bool:
        """Print a result as JSON if that is asked for; returns whether it was."""
        if not self.json:
            return False
        data = result if isinstance(result, dict) else result.to_json()
        # allow_nan is off: a reader of this JSON need not know Python's NaN
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=True) + "\n")
        return True

    def show(self, *views: RenderableType) -> None:
        """Print an answer for people."""
        if self.quiet or self.json:
            return
        console = _console(sys.stdout)
        for view in views:
            console.print(view)

    def line(self, text: str) -> None:
        """Print a line of an answer as it is."""
        sys.stdout.write(text + "\n")

    def notes(self, notes: tuple[str, ...] | list[str], word: str = "note") -> None:
        """Print remarks to stderr."""
        if self.quiet or self.json or not notes:
            return
        from rich.text import Text

        console = _console(sys.stderr)
        for note in notes:
            line = Text(f"{word}: ", style="yellow")
            line.append(escape(note, 1000), style="default")
            console.print(line)

    @contextmanager
    def progress(self, what: str) -> Iterator[Any]:
        """Give a callback (done, total) that draws a bar on a terminal once work takes over a second."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield None
            return
        bar = _Bar(what)
        try:
            yield bar.update
        finally:
            bar.stop()


class _Bar:
    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def update(self, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._began < AFTER_S or done >= total:
                return
            self._start(total)
        self._progress.update(self._task, completed=done)

    def _start(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("  {task.description}"), BarColumn(20), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=_console(sys.stderr), transient=True,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task(self._what, total=total)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def error_json(error: CheckpointError) -> str:
    """Return an error as one line of JSON."""
    data = {
        "kind": "ckpt.error",
        "version": 1,
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
        "rule": error.rule or None,
        "details": list(error.details),
    }
    return json.dumps(data, ensure_ascii=True)


def error_text(error: CheckpointError) -> Any:
    """Return an error for people."""
    from rich.text import Text

    line = Text("error: ", style="bold red")
    line.append(error.message, style="default not bold")
    if error.hint:
        line.append(f" {error.hint}", style="default not bold")
    return line
