"""Shows on stderr what a command waits for, if its progress cannot be counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock, Timer
from typing import TYPE_CHECKING

from .progress_bar import PROGRESS_AFTER_S

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["WaitingLine"]


class WaitingLine:
    """A line that appears after ``after_s`` seconds, and is removed by ``stop``.

    ``what`` is called when the line appears, and returns its text.
    """

    def __init__(self, what: Callable[[], str], console: Console, after_s: float = PROGRESS_AFTER_S) -> None:
        self._what, self._console = what, console
        self._lock, self._shown, self._is_over = Lock(), ExitStack(), False
        self._timer = Timer(after_s, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if not self._is_over:
                self._shown.enter_context(self._console.status(f"  {self._what()}", spinner="line"))

    def stop(self) -> None:
        """Remove the line; afterwards it does not appear any more."""
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            self._shown.close()
