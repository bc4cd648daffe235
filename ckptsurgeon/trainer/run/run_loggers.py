"""The loggers of a run, from its first step to its result.

Each logger runs in a thread, so a slow or failing logger neither delays nor ends the run.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

from ...errors import CheckpointError, ConfigError
from ...util.registry import discover
from ...util.text import brief_repr, escape
from ...util.version import __version__
from ..config.imports import require_package
from ..folder.run_folder import RunFolder
from ..job.job import Job
from ..log import Observer
from ..loggers._logger import LoggedRun, Logger, Summary
from ..system.signals import SIGNAL_NAMES
from .result import Trained, plain_json

__all__ = ["LOGGER_IDS", "LoggerThread", "RunLoggers", "check_loggers", "find_loggers", "summary_of"]


LOGGER_IDS = "loggers.json"
"""The file in a run folder with the ids that loggers gave the run, by the names of the loggers."""
GOES_ON = "failed, and the run goes on without it"


class RunLoggers:
    """The loggers of a run. They are open inside the ``with`` block of ``logging``.

    ``observe`` takes the place of ``observer``: it passes each row and event to ``observer``, and each row of the log
    also to the open loggers. An error in a logger ends only this logger, and ``observer`` gets a note about the error.
    ``notes`` has all notes on loggers.
    """

    def __init__(self, folder: RunFolder, observer: Observer) -> None:
        self.notes: tuple[str, ...] = ()
        self._folder, self._observer = folder, observer
        self._open: dict[str, LoggerThread] = {}

    def observe(self, row: Mapping[str, Any]) -> None:
        """Pass a row of the log to the observer and the open loggers, or an event to the observer."""
        self._observer(row)
        if "event" not in row:
            for logger in self._open.values():
                logger.write(row)
            self._drop_failed()

    @contextmanager
    def logging(self, job: Job, init: str | None, step: int) -> Iterator[None]:
        """Open the loggers of a job inside the block; close them if the block raises an error.

        ``init`` is the path of the initial weights, ``step`` the step at which the run continues (0: a new run).
        """
        ids = self._known_ids()
        for name, kind in find_loggers(job.settings.loggers).items():
            run = LoggedRun(_name(job, self._folder), self._folder.path, step, ids.get(name, ""), _config(job, init))
            self._begin(name, kind, run, ids)
        if ids:
            self._folder.write_json(LOGGER_IDS, ids)
        try:
            yield
        except Exception as error:
            self._end(Summary({"ended": type(error).__name__}, exit_code=1))
            raise

    def finish(self, result: Trained) -> None:
        """Log the summary of the run's result, and close the loggers."""
        self._end(summary_of(result))

    def _begin(self, name: str, kind: type[Logger], run: LoggedRun, ids: dict[str, str]) -> None:
        try:
            logger = kind(run)
        except Exception as error:
            self._note(_failure(name, error))
            return
        self._open[name] = LoggerThread(logger)
        if logger.id:
            ids[name] = logger.id
        if logger.place:
            self._note(f"{name} logs to {logger.place}")

    def _end(self, summary: Summary) -> None:
        self._drop_failed()
        for logger in self._open.values():
            logger.finish(summary)
        self._drop_failed("failed at the end of the run")
        self._open = {}

    def _drop_failed(self, how: str = GOES_ON) -> None:
        for name, logger in list(self._open.items()):
            if logger.error is not None:
                del self._open[name]
                self._note(_failure(name, logger.error, how))

    def _note(self, note: str) -> None:
        self.notes += (note,)
        self._observer({"event": "notes", "notes": (note,)})

    def _known_ids(self) -> dict[str, str]:
        """Return the ids that loggers gave this run earlier, by logger; {} if the file of ids is missing or damaged."""
        if not os.path.exists(self._folder.of(LOGGER_IDS)):
            return {}
        try:
            return {name: str(one) for name, one in self._folder.read_json(LOGGER_IDS).items()}
        except CheckpointError:
            return {}


def _failure(name: str, error: Exception, how: str = GOES_ON) -> str:
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"the logger {name} {how}: {escape(said, 300)}"


def _name(job: Job, folder: RunFolder) -> str:
    """Return the name of a run for loggers, made of the names of its configuration and its folder."""
    stem = os.path.splitext(os.path.basename(job.document.path))[0]
    return f"{stem}-{os.path.basename(os.path.abspath(folder.path))}"


def _config(job: Job, init: str | None) -> dict[str, Any]:
    """Return the settings of a job as a dict for loggers, plus configuration, initial weights, device, processes."""
    more = {"config": job.document.name, "init": init, "device": job.device.type, "processes": job.ranks.size}
    return {**plain_json(asdict(job.settings)), **more, "ckptsurgeon": __version__}


def summary_of(result: Trained) -> Summary:
    """Return the summary of a result for loggers: its metrics, each check's status, and the verdict of the controls."""
    names = ("ended", "step", "metric", "best", "best_step", "first_loss", "last_loss", "skipped", "train_s")
    values: dict[str, Any] = {name: getattr(result, name) for name in names}
    values |= {f"final/{name}": value for name, value in result.figures.items()}
    values |= {f"test/{name}": value for name, value in result.test.items()}
    values |= {f"checks/{check.name}": check.status for check in result.checks}
    if result.controls is not None:
        values["verdict"] = result.controls.verdict
    kept = {name: value for name, value in values.items() if value is not None}
    return Summary(kept, result.exit_code, is_stopped=result.ended in SIGNAL_NAMES)


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
