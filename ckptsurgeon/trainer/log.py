"""The log of a run: the counts and the result of each step, and its row, a line of JSON."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..storage.descriptors import sync
from ..storage.small_files import open_file
from ..storage.write.output_paths import output_error
from .folder.run_folder import RunFolder
from .parallel.ranks import Ranks
from .state.training_state import RunProgress
from .system.signals import SIGNAL_NAMES
from .tasks._task import Batch, places

__all__ = [
    "Observer",
    "PendingStep",
    "StepCounts",
    "StepResult",
    "TrainingLog",
    "evaluation_row",
    "log_rows",
    "read_log",
]


@dataclass(frozen=True)
class StepCounts:
    """Counts of one step over all ranks. They are on the CPU, so that reading them never waits for a GPU.

    ``clips`` is the number of clips, ``unseen_clips`` the number of clips that the run had not seen before, and
    ``seconds`` the total length of the clips. ``room`` is the number of time steps in the batches with padding,
    ``used`` the number of time steps without padding. ``signal`` is the name of a signal that a rank received, or ''.
    """

    clips: int
    unseen_clips: int
    used: int
    room: int
    seconds: float
    signal: str = ""

    @staticmethod
    def of_all(
        ranks: Ranks, batches: Sequence[Batch], unseen: int, signal: str, parts: Mapping[str, Tensor]
    ) -> StepCounts:
        """Return the counts of all ranks together; every rank must call this.

        The first ``unseen`` of the ``batches`` have clips that the run has not seen before. Raises ConfigError if the
        losses of the ranks have different ``parts``.
        """
        packed = StepCounts.pack(batches, unseen, signal, parts)
        ranks.all_reduce([packed])
        return StepCounts.unpack(packed, ranks.size)

    @staticmethod
    def pack(batches: Sequence[Batch], unseen: int, signal: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the counts of this rank as one float64 tensor, to be summed over the ranks.

        The tensor also has a hash of the names in ``parts``, and the square of the hash. The sums of both over the
        ranks show whether all ranks have the same hash, and so whether all losses have the same parts.
        """
        counted = [batch for batch in batches if not batch.idle]
        clips = sum(len(batch.names) for batch in counted)
        unseen_clips = sum(len(batch.names) for batch in batches[:unseen] if not batch.idle)
        used, room = places(counted)
        names = zlib.crc32(" ".join(parts).encode()) % 2**20
        received = [name == signal for name in SIGNAL_NAMES]
        seconds = sum(batch.seconds for batch in batches)
        return torch.tensor(
            [clips, unseen_clips, used, room, seconds, *received, names, names**2], dtype=torch.float64
        )  # fmt: skip

    @staticmethod
    def unpack(sums: Tensor, ranks: int) -> StepCounts:
        """Return the counts of all ``ranks`` ranks together; ``sums`` is the sum of the tensors that ``pack`` returned.

        Raises ConfigError if the losses of the ranks have different parts. Parts are summed in their order, so
        different parts would be added to each other.
        """
        clips, unseen_clips, used, room, seconds, *received, names, squares = sums.tolist()
        if ranks * squares != names**2:  # equal only if every rank sent the same number
            raise ConfigError(
                "the losses of the processes have different parts in the same step.",
                hint="Let the task return the same parts in the same order for every batch, with 0 for an empty part.",
            )
        signal = next((name for name, count in zip(SIGNAL_NAMES, received, strict=True) if count), "")
        return StepCounts(int(clips), int(unseen_clips), int(used), int(room), seconds, signal)


@dataclass(frozen=True)
class StepResult:
    """The result of one step: ``loss`` and ``parts`` per item, ``grad_norm`` before clipping, and counts.

    ``is_skipped`` is true if the step was skipped because a value was not finite. ``too_short`` is the number of clips
    with too few frames for CTC. These tensors stay on the device until the log fetches them. ``own_places`` is the
    number of time steps in the padded batches of this rank, or the number of clips if inputs have no time axis.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    grad_norm: Tensor
    is_skipped: Tensor
    counts: StepCounts
    too_short: Tensor | None = None
    own_places: int = 0

    @property
    def places(self) -> int:
        """The number of time steps of all clips, with padding; if inputs have no time axis, the number of clips."""
        return self.counts.room or self.counts.clips


Observer = Callable[[Mapping[str, Any]], None]
"""A function that is called with each row of the log."""


LOG_FILE = "log.jsonl"
LINE_BYTES = 1 << 20
"""The maximum length of a line of the log, in bytes."""

PendingStep = tuple[int, dict[str, float], StepResult]
"""A finished step that is not in the log yet: its number, its learning rates by name, its result."""


def log_rows(pending: list[PendingStep], since: float, *, flops: float, peak: float | None) -> list[dict[str, Any]]:
    """Return a row of the log for each of the finished steps ``pending``; waits for the device only once.

    ``since`` is the time.perf_counter() at which the first of these steps began. Each step gets the same share of the
    time from ``since`` to now. ``flops`` is the number of floating-point operations for one time step of one clip in a
    padded batch, and ``peak`` is the peak FLOP/s of the device (None: unknown). NaN and infinity become None in a row,
    because JSON has neither.
    """
    if not pending:
        return []
    # One stack and one tolist for all tensors: each separate copy would wait for the GPU.
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


def evaluation_row(progress: RunProgress, *, is_lowered: bool) -> dict[str, Any]:
    """Return the row of the log for the last evaluation.

    If it lowered the learning rate (``is_lowered``), ``anneal_scale`` is the factor by which evaluations have lowered
    it so far.
    """
    scale = {"anneal_scale": progress.lr_scale} if is_lowered else {}
    return {"step": progress.step, "dev": progress.figures, **scale}


def _tensors_of(result: StepResult) -> dict[str, Tensor]:
    """Return by name the tensors of a step's result, still on the device; a part of the loss is named ``part NAME``."""
    parts = {f"part {name}": value for name, value in result.parts.items()}
    short = {} if result.too_short is None else {"too_short": result.too_short}
    return {"loss": result.loss, "grad_norm": result.grad_norm, "is_skipped": result.is_skipped, **short, **parts}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class TrainingLog:
    """The log file of a run folder; if ``folder`` is None, nothing is written.

    Opening the log removes the rows after ``step``, because the run continues from its checkpoint at ``step``, and
    repeats the later steps.
    """

    def __init__(self, folder: RunFolder | None, step: int) -> None:
        self._file: Any = None
        if folder is None:
            return
        self._path = folder.of(LOG_FILE)
        kept = [row for row in read_log(self._path) if row["step"] <= step] if step else []
        folder.write(LOG_FILE, "".join(json.dumps(row) + "\n" for row in kept).encode())
        try:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise output_error(self._path, error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row to the file as a line of JSON; raises OutputError."""
        if self._file is None:
            return
        with self._explaining():
            self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Flush the file, so that other programs can read all rows now; raises OutputError."""
        if self._file is not None:
            with self._explaining():
                self._file.flush()

    def sync(self) -> None:
        """Sync the file to the disk: even after a power cut, the log then has all rows up to the next checkpoint."""
        if self._file is not None:
            with self._explaining():
                self._file.flush()
                sync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with self._explaining():
                self._file.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._path, error) from error


def read_log(path: str) -> list[dict[str, Any]]:
    """Return the rows of the log at ``path`` up to the first incomplete line, which a killed run leaves at the end."""
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
