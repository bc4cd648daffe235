"""Evaluates the best weights of a run on the split ``test``, after the last step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...destinations.hf.files import ADAPTER_WEIGHTS
from ...errors import ConfigError
from ...util.text import escape
from ..config.settings import Settings
from ..data.source import BatchSource
from ..evaluation import evaluate_shared
from ..folder.hypotheses import clip_sounds, hypotheses, hypotheses_file
from ..log import LOG_FILE as LOG
from ..log import Observer, TrainingLog, read_log
from ..loop import TrainingLoop
from ..parallel.ranks import ParallelModel
from ..state.saved_model import saved_model
from ..system.device import evaluation_error
from ..tasks._task import Batch

__all__ = ["FinalFigures", "evaluate_test_split"]


@dataclass(frozen=True)
class FinalFigures:
    """The metrics of the split ``test``, which has ``clips`` clips, with the weights after ``step`` steps."""

    step: int
    figures: Mapping[str, float]
    clips: int

    def row(self) -> dict[str, Any]:
        """Return the metrics as a row of the log."""
        return {"step": self.step, "test": dict(self.figures), "test_clips": self.clips}


def evaluate_test_split(loop: TrainingLoop, observer: Observer, given: Sequence[str]) -> FinalFigures | None:
    """Return the metrics of a run's best weights on the split ``test``; None if there are no best weights.

    If these weights were evaluated before, the metrics come from the run's log. If there is too little memory, a
    ConfigError names the saved weights, and the command that evaluates them alone; ``given`` are its other arguments.
    """
    progress, job, folder = loop.state.progress, loop.job, loop.folder
    assert job.test is not None
    assert folder is not None
    if job.dev is not None and progress.best is None:
        return None
    step = progress.best_step if job.dev is not None else progress.step
    for row in read_log(folder.of(LOG)):
        if row["step"] == step and "test" in row:  # the run had ended before, and was resumed
            return FinalFigures(step, row["test"], row["test_clips"])
    observer({"event": "test", "step": step})
    try:
        found = _evaluate_weights(loop, folder.best, step)
    except torch.OutOfMemoryError as error:
        raise _complete_error(job.settings, folder.best, given) from error
    log = TrainingLog(folder, progress.step)
    try:
        log.write(found.row())
    finally:
        log.close()
    observer(found.row())
    return found


def _complete_error(settings: Settings, weights: str, given: Sequence[str]) -> ConfigError:
    """Return the error for an evaluation without enough memory, after a training that is complete."""
    is_adapter = os.path.basename(weights) in ADAPTER_WEIGHTS
    first = "merge the adapter with ckpt lora merge, and then " if is_adapter else ""
    init = "MERGED" if is_adapter else escape(shlex.quote(weights))
    command = f"{first}ckpt train {escape(shlex.join(given))} --init {init} --evaluate test"
    return evaluation_error(settings, f"the training is complete, and its weights are in {escape(weights)}", command)


def _evaluate_weights(loop: TrainingLoop, weights: str, step: int) -> FinalFigures:
    """Evaluate a file of weights on the test split, and write the hypotheses to the run folder.

    The file is loaded into a new model, because the run's own model has the weights of the last step.
    """
    job = loop.job
    assert job.test is not None
    counted = _Counted(job.test)
    found = evaluate_shared(ParallelModel(saved_model(job, weights)), job.task, counted, settings=job.settings)
    if loop.folder is not None and (texts := hypotheses(found.rows, clip_sounds(job.test, loop.folder.path))):
        loop.folder.write(hypotheses_file("test"), texts)
    return FinalFigures(step, found.figures, counted.clips)


class _Counted:
    """A source with the same batches as ``source``; it counts in ``clips`` how many clips were read."""

    def __init__(self, source: BatchSource) -> None:
        self._source, self.clips = source, 0

    def size(self, epoch: int) -> int:
        return self._source.size(epoch)

    def read(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._source.read(seed, epoch, start):
            self.clips += len(batch.names)
            yield batch
