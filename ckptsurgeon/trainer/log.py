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

__all__ = ["Observer", "TensorBoardLog", "TrainingLog", "log_rows", "read_log"]

Observer = Callable[[Mapping[str, Any]], None]
"""A function that gets each row of the log."""


class TensorBoardLog:
    """Writes TensorBoard events from ``step`` on; it hides events of later steps, which were not saved."""

    def __init__(self, folder: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        _silence_threads_of("tensorboard")
        with self._explaining():
            self._board = SummaryWriter(folder, purge_step=step + 1 if step else None)

    @staticmethod
    def can_be_written() -> bool:
        """Return whether TensorBoard is installed."""
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers in a row of the log; raises OutputError.

        A thread writes to the disk, so the error may be that of an earlier row.
        """
        with self._explaining():
            for name, value in _scalars(row):
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write everything and close the file."""
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
    """Print no traceback from now on if a thread of ``package`` fails: the next write raises the error again."""
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


LOG_FILE = "log.jsonl"
LINE_BYTES = 1 << 20
"""The most bytes that a line of a log may have."""

PendingStep = tuple[int, dict[str, float], StepResult]
"""A step that is done: its number, its learning rates, its result."""


def log_rows(pending: list[PendingStep], since: float, *, flops: float, peak: float | None) -> list[dict[str, Any]]:
    """Return finished steps as rows of the log; waits for the device once for all of them.

    ``since`` is the time.perf_counter() at which the first of the steps began; each step gets the same share of the
    time. ``flops`` is the number of floating-point operations for each place of a padded batch, ``peak`` how many the
    device can do in a second. None stands for NaN and infinity, which JSON does not have.
    """
    if not pending:
        return []
    # One stack and one tolist: each tensor fetched by itself would wait for the GPU again.
    on_device = [_tensors_of(result) for _, _, result in pending]
    values = iter(torch.stack([value.float() for tensors in on_device for value in tensors.values()]).tolist())
    elapsed_s = max((time.perf_counter() - since) / len(pending), 1e-9)
    rows = []
    for (step, rates, result), tensors in zip(pending, on_device, strict=True):
        fetched = {name: next(values) for name in tensors}
        short = fetched.pop("too_short", None)
        done, counts = round(flops * result.places), result.counts
        rows.append(
            {
                "step": step,
                "loss": _finite(fetched.pop("loss")),
                "grad_norm": _finite(fetched.pop("grad_norm")),
                "skipped": bool(fetched.pop("is_skipped")),
                "parts": {name.removeprefix("part "): _finite(value) for name, value in fetched.items()},
                "lr": rates,
                "clips": counts.clips,
                "clips_s": counts.clips / elapsed_s,
                "audio_s_s": counts.seconds / elapsed_s,
                "padding": 1 - counts.used / counts.room if counts.room else 0.0,
                "flops": done,
                **({} if peak is None else {"utilisation": done / elapsed_s / peak}),
                **({} if short is None else {"too_short": int(short), "fresh": counts.unseen_clips}),
            }
        )
    return rows


def _tensors_of(result: StepResult) -> dict[str, torch.Tensor]:
    """Return the figures of a step that are still on the device; names of parts get a prefix, so that all differ."""
    parts = {f"part {name}": value for name, value in result.parts.items()}
    short = {} if result.too_short is None else {"too_short": result.too_short}
    return {"loss": result.loss, "grad_norm": result.grad_norm, "is_skipped": result.is_skipped, **short, **parts}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class TrainingLog:
    """The log file of a run folder; if ``folder`` is None, nothing is written.

    When it is opened, rows after ``step`` are removed: the run was not saved there, and does these steps again.
    """

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
        """Write a row to the file, and its numbers to TensorBoard; raises OutputError."""
        if self._file is None:
            return
        with self._explaining():
            self._file.write(json.dumps(row) + "\n")
        if self._events is not None:
            self._events.write(row)

    def flush(self) -> None:
        """Flush the file, for other programs that read it now."""
        if self._file is not None:
            with self._explaining():
                self._file.flush()

    def sync(self) -> None:
        """Sync the file to the disk, so that even after a power cut it is not older than the next checkpoint."""
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
    """Return the rows of a log; an incomplete last line, of a run that was killed, is left out."""
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
