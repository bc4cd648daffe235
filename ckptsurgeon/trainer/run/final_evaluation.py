"""Evaluates the best weights of a run on the split ``test``, after the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.source import BatchSource
from ..evaluation import evaluate_shared
from ..folder.hypotheses import clip_sounds, hypotheses, hypotheses_file
from ..log import LOG_FILE as LOG
from ..log import Observer, TrainingLog, read_log
from ..loop import TrainingLoop
from ..parallel.ranks import ParallelModel
from ..state.saved_model import saved_model
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


def evaluate_test_split(loop: TrainingLoop, observer: Observer) -> FinalFigures | None:
    """Return the metrics of a run's best weights on the split ``test``; None if there are no best weights.

    If these weights were evaluated before, the metrics come from the run's log.
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
    found = _evaluate_weights(loop, folder.best, step)
    log = TrainingLog(folder, progress.step)
    try:
        log.write(found.row())
    finally:
        log.close()
    observer(found.row())
    return found


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
