"""TensorBoard: events in the run folder, written whenever TensorBoard is installed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...storage.write.output_paths import output_error
from ._logger import LoggedRun, Logger, Summary, scalars

__all__ = ["LOGGER"]

EVENTS = "events"


class TensorBoard(Logger):
    """Writes TensorBoard events. If the run is resumed, events of steps after the last checkpoint are hidden."""

    package, extra, is_automatic = "tensorboard", "train", True

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = os.path.join(run.folder, EVENTS)
        _silence_threads_of("tensorboard")
        with self._explaining():
            self._board = SummaryWriter(self._folder, purge_step=run.step + 1 if run.step else None)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the numbers in rows of the log; raises OutputError.

        A thread of TensorBoard writes to the disk, so the error may belong to an earlier row.
        """
        with self._explaining():
            for row in rows:
                for name, value in scalars(row).items():
                    self._board.add_scalar(name, value, row["step"])

    def finish(self, summary: Summary) -> None:
        """Write everything and close the file; the summary is not shown, since TensorBoard has no place for it."""
        try:
            with self._explaining():
                self._board.close()
        finally:
            if isinstance(threading.excepthook, _ExcepthookFilter):
                threading.excepthook = threading.excepthook.before

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._folder, error) from error


def _silence_threads_of(package: str) -> None:
    """From now on, print no traceback if a thread of ``package`` fails; the next write raises the thread's error."""
    if not isinstance(threading.excepthook, _ExcepthookFilter):
        threading.excepthook = _ExcepthookFilter(package, threading.excepthook)


@dataclass(frozen=True)
class _ExcepthookFilter:
    """A threading.excepthook that ignores the threads of one package."""

    package: str
    before: Callable[[Any], object]

    def __call__(self, given: Any) -> None:
        if not type(given.thread).__module__.startswith(self.package):
            self.before(given)


LOGGER = TensorBoard
