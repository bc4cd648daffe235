"""What a run was like, for TensorBoard."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...storage.write.output_checks import output_error

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """The events in a folder, from ``step`` on; later ones, of a run that went on unsaved, are hidden."""

    def __init__(self, folder: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        _silence_threads_of("tensorboard")
        with self._explaining():
            self._board = SummaryWriter(folder, purge_step=step + 1 if step else None)

    @staticmethod
    def can_be_written() -> bool:
        """Whether TensorBoard is installed."""
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add what is a number in a line of the log; raises OutputError, also for what was added before."""
        with self._explaining():
            for name, value in _scalars(row):
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write all and close the file."""
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


def _scalars(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for name, value in row.items():
        pairs = [(f"{name}/{part}", one) for part, one in value.items()] if isinstance(value, dict) else [(name, value)]
        found += [(path, one) for path, one in pairs if isinstance(one, (int, float)) and path != "step"]
    return found


def _silence_threads_of(package: str) -> None:
    """Let Python say nothing of what ends a package's threads: its writer raises that again for whoever writes next."""
    if not isinstance(threading.excepthook, _ExcepthookFilter):
        threading.excepthook = _ExcepthookFilter(package, threading.excepthook)


@dataclass(frozen=True)
class _ExcepthookFilter:
    """Tells what ends a thread, unless that is one of a package."""

    package: str
    before: Callable[[Any], object]

    def __call__(self, given: Any) -> None:
        if not type(given.thread).__module__.startswith(self.package):
            self.before(given)
