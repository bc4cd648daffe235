"""The log of a run, step by step: JSON lines, and TensorBoard events if it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..storage.small_files import open_file
from ..storage.write.output_checks import output_error
from ..storage.write.temp import sync
from .folder.run_folder import RunFolder
from .step import StepResult

__all__ = ["TensorBoardLog", "TrainingLog", "log_rows", "read_log"]


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


LOG_FILE = "log.jsonl"
LINE_BYTES = 1 << 20
"""More than a line of a log has."""

PendingStep = tuple[int, dict[str, float], StepResult]
"""A step that is done, its learning rates, and what it was like."""


def log_rows(pending: list[PendingStep], since: float, *, flops: float, peak: float | None) -> list[dict[str, Any]]:
    """Return steps as plain data; waits for the device once for all of them.

    ``since`` is when the first of them began; they are said to have taken the same time. ``flops`` are the operations
    for each place of a batch, ``peak`` is what the device can do in a second. What is not finite is None: JSON has no
    such numbers.
    """
    if not pending:
        return []
    on_device = [_on_device(stepped) for _, _, stepped in pending]
    values = iter(torch.stack([value.float() for one in on_device for value in one.values()]).tolist())
    took = max((time.perf_counter() - since) / len(pending), 1e-9)
    rows = []
    for (step, rates, stepped), wanted in zip(pending, on_device, strict=True):
        got = {name: next(values) for name in wanted}
        short = got.pop("too_short", None)
        done = round(flops * stepped.places)
        rows.append(
            {
                "step": step,
                "loss": _finite(got.pop("loss")),
                "grad_norm": _finite(got.pop("norm")),
                "skipped": bool(got.pop("bad")),
                "parts": {name.removeprefix("part "): _finite(value) for name, value in got.items()},
                "lr": rates,
                "clips": stepped.clips,
                "clips_s": stepped.clips / took,
                "audio_s_s": stepped.seconds / took,
                "padding": 1 - stepped.used / stepped.room if stepped.room else 0.0,
                "flops": done,
                **({} if peak is None else {"utilisation": done / took / peak}),
                **({} if short is None else {"too_short": int(short), "fresh": stepped.fresh}),
            }
        )
    return rows


def _on_device(stepped: StepResult) -> dict[str, torch.Tensor]:
    """Return the figures of a step that wait to be fetched."""
    parts = {f"part {name}": value for name, value in stepped.parts.items()}
    short = {} if stepped.too_short is None else {"too_short": stepped.too_short}
    return {"loss": stepped.loss, "norm": stepped.norm, "bad": stepped.bad, **short, **parts}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class TrainingLog:
    """The log in a folder; None writes nothing. Lines past ``step``, of a run that went on unsaved, are dropped."""

    def __init__(self, folder: RunFolder | None, step: int, *, tensorboard: bool = False) -> None:
        self._file: Any = None
        self._events: TensorBoardLog | None = None
        if folder is None:
            return
        self._path = folder.of(LOG_FILE)
        kept = [row for row in read_log(self._path) if row["step"] <= step] if step else []
        folder.write(LOG_FILE, "".join(json.dumps(row) + "\n" for row in kept).encode())
        try:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise output_error(self._path, error) from error
        if tensorboard and TensorBoardLog.can_be_written():
            try:
                self._events = TensorBoardLog(folder.of("events"), step)
            except BaseException:
                self._file.close()
                raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line."""
        if self._file is None:
            return
        with self._explaining():
            self._file.write(json.dumps(row) + "\n")
        if self._events is not None:
            self._events.write(row)

    def flush(self) -> None:
        """Let what was written be there for whoever reads the file now."""
        if self._file is not None:
            with self._explaining():
                self._file.flush()

    def sync(self) -> None:
        """Let it survive a power cut, as the checkpoint does that is saved next."""
        if self._file is not None:
            with self._explaining():
                self._file.flush()
                sync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        try:
            if self._file is not None:
                with self._explaining():
                    self._file.close()
        finally:
            if self._events is not None:
                self._events.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._path, error) from error


def read_log(path: str) -> list[dict[str, Any]]:
    """Return the lines of a log; a last one that is half written, by a run that was killed, is left out."""
    if not os.path.exists(path):
        return []
    rows = []
    with open_file(path) as file:
        while line := file.readline(LINE_BYTES):
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]
