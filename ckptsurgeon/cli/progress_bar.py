"""Draws the progress bar of a command on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ProgressBar"]

PROGRESS_AFTER_S = 1.0
"""The progress of work is shown if it takes longer than this, in seconds."""


class ProgressBar:
    """Draws the finished share of some work and the remaining time; the line is removed when the work ends.

    ``what`` is the text before the bar.
    """

    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._began = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are done; draws nothing in the first second."""
        if self._progress is None:
            if time.monotonic() - self._began < PROGRESS_AFTER_S or done >= total:
                return
            self._start(total)
        self._progress.update(self._task, completed=done, total=total)

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
            TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task(self._what, total=total)

    def stop(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
