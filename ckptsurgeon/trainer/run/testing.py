"""Figures of the best weights on the split ``test``: once, when a run has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...api.transplant.load_into import load_into
from ..folder.run_folder import BEST
from ..loop.evaluating import evaluate
from ..loop.log import LOG_FILE as LOG
from ..loop.log import TrainingLog, read_log
from ..loop.loop import DONE, PATIENCE, TrainingLoop
from ..tasks._task import Batch

__all__ = ["UNTESTED", "TestFigures", "evaluate_test_split", "has_test_split"]

UNTESTED = "test was not evaluated: no evaluation on dev gave a number, so that no model is the best"


@dataclass(frozen=True)
class TestFigures:
    """``figures`` over so many ``clips``, of the weights after ``step`` steps."""

    step: int
    figures: Mapping[str, float]
    clips: int

    def row(self) -> dict[str, Any]:
        """Return it as a line of the log."""
        return {"step": self.step, "test": dict(self.figures), "test_clips": self.clips}


def has_test_split(loop: TrainingLoop) -> bool:
    """Whether a run has a test split, and came to its end: one that was stopped will go on."""
    return loop.job.work.test is not None and loop.standing.ended in (DONE, PATIENCE)


def evaluate_test_split(loop: TrainingLoop, tell: Callable[[Mapping[str, Any]], None]) -> TestFigures | None:
    """Evaluate the best weights of a run, or find in its log what they were like; None where none are the best."""
    standing, work, folder = loop.standing, loop.job.work, loop.folder
    assert work.test is not None
    assert folder is not None
    if work.dev is not None and standing.best is None:
        return None
    step = standing.best_step if work.dev is not None else standing.step
    for row in read_log(folder.of(LOG)):
        if row["step"] == step and "test" in row:  # of a run that had ended, and was resumed
            return TestFigures(step, row["test"], row["test_clips"])
    tell({"event": "test", "step": step})
    found = _evaluated(loop, folder.of(BEST), step)
    log = TrainingLog(folder, standing.step, tensorboard=True)
    try:
        log.write(found.row())
    finally:
        log.close()
    tell(found.row())
    return found


def _evaluated(loop: TrainingLoop, weights: str, step: int) -> TestFigures:
    """Evaluate what a file holds, in a model of its own: the run's holds its last weights."""
    job, clips = loop.job, 0

    def counted(batches: Iterable[Batch]) -> Iterator[Batch]:
        nonlocal clips
        for batch in batches:
            clips += len(batch.names)
            yield batch

    assert job.work.test is not None
    model = job.empty_model()
    load_into(model, weights, strict=True, on_missing="error")
    figures = evaluate(
        model.to(job.device), job.work.task, counted(job.work.test.read(0, 0)), settings=job.settings
    )  # fmt: skip
    return TestFigures(step, figures, clips)
