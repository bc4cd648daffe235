"""Finds loggers by their names, and runs each in a thread: a slow or failing logger neither delays nor ends the run."""

from __future__ import annotations

import difflib
import importlib.util
import queue
import threading
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ...errors import ConfigError
from ...util.registry import discover
from ...util.text import brief_repr
from ..config.imports import require_package
from ._logger import Logger, Summary

__all__ = ["LoggerThread", "check_loggers", "find_loggers"]

LOGGERS = "ckptsurgeon.trainer.loggers"


def find_loggers(names: Iterable[str]) -> dict[str, type[Logger]]:
    """Return, by name, the classes of the loggers in ``names`` and of the automatic loggers.

    An automatic logger (``is_automatic``) is used without being named, if its package is installed. Raises ConfigError
    for a name that no logger has.
    """
    known = cast("Mapping[str, type[Logger]]", discover(LOGGERS, "LOGGER"))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Use {' or '.join(known)}."
            raise ConfigError(f"train.loggers: there is no logger {brief_repr(name)}.", hint=hint)
    automatic = [name for name, kind in known.items() if kind.is_automatic and is_installed(kind)]
    return {name: known[name] for name in dict.fromkeys([*automatic, *names])}


def check_loggers(names: Iterable[str]) -> None:
    """Raise ConfigError if a logger in ``names`` does not exist, or if its package cannot be imported."""
    named = tuple(names)
    found = find_loggers(named)
    for name in named:
        require_package(found[name].package, extra=found[name].extra)


def is_installed(kind: type[Logger]) -> bool:
    """Return whether the package of a logger is installed."""
    return importlib.util.find_spec(kind.package) is not None


WAIT_S = 60.0
"""At the end of a run, a logger has at most this many seconds to finish."""


class LoggerThread:
    """Passes rows of the log to a logger in a separate thread.

    Rows that arrive while the thread is busy are passed together in the next call. If the logger raises an error,
    ``error`` is set to this error, and further rows are dropped.
    """

    def __init__(self, logger: Logger, wait_s: float = WAIT_S) -> None:
        self.error: Exception | None = None
        self._logger, self._wait_s = logger, wait_s
        self._queue: queue.SimpleQueue[Mapping[str, Any] | Summary] = queue.SimpleQueue()
        # A daemon, since the program must be able to end while a logger waits for a server.
        self._thread = threading.Thread(target=self._work, name=f"logger {logger.package}", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Queue a row of the log for the logger; drop it if the logger has failed."""
        if self.error is None:
            self._queue.put(row)

    def finish(self, summary: Summary) -> None:
        """Queue the summary, and wait until the logger is done, has failed, or takes too long."""
        self._queue.put(summary)
        self._thread.join(self._wait_s)
        if self._thread.is_alive():
            self.error = TimeoutError(f"the logger did not finish within {self._wait_s:g} s")

    def _work(self) -> None:
        try:
            while True:
                rows, summary = self._next()
                if rows:
                    self._logger.write(rows)
                if summary is not None:
                    self._logger.finish(summary)
                    return
        except Exception as error:
            self.error = error

    def _next(self) -> tuple[list[Mapping[str, Any]], Summary | None]:
        """Wait for a row or the summary; return all queued rows, and the summary (None if it is not queued yet)."""
        rows: list[Mapping[str, Any]] = []
        found = self._queue.get()
        while not isinstance(found, Summary):
            rows.append(found)
            if self._queue.empty():
                return rows, None
            found = self._queue.get()
        return rows, found
