"""A run that ends worse than it began has diverged, and one whose loss fell by no more than its noise did not learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...util.text import apart, count
from ..job.source import first_batch
from ..loop.evaluating import loss_per_item, uniform_loss
from ..loop.log import LOG_FILE as LOG
from ..loop.log import read_log
from ..loop.loop import TrainingLoop
from ._check import FAIL, NOT_RUN, PASS, WARN, Check
from ._fall import MIN_STEPS, loss_drop

__all__ = ["LOSS_FELL", "loss_fell"]

LOSS_FELL = "loss fell"
ABOVE = 1.02
"""What a loss is above another by that is no chance of one batch."""
RISEN = 1.25


def loss_fell(loop: TrainingLoop) -> Check:
    """Hold the loss of the first batch after the last step against what it was, and what saying nothing costs.

    Then the losses of the last steps against those of the first, and how much they vary from step to step.
    """
    standing, job = loop.standing, loop.job
    if not standing.step:
        return Check(LOSS_FELL, NOT_RUN, "no step was taken")
    batch = first_batch(job.work.train, job.settings.seed)
    last = loss_per_item(loop.model, job.work.task, [batch], settings=job.settings)
    uniform = uniform_loss(loop.model, job.work.task, batch, settings=job.settings)
    first = standing.first_loss
    says = f"{' to '.join(apart(math.nan if first is None else first, last))} on the first batch"
    bounds = [one for one in (first, uniform) if one is not None and math.isfinite(one) and one > 0]
    if math.isfinite(uniform) and uniform > 0:
        says += f", {uniform:.3g} of uniform outputs"
    if not math.isfinite(last):
        return Check(LOSS_FELL, FAIL, says)
    if bounds and last > ABOVE * max(bounds):
        return Check(LOSS_FELL, FAIL, f"{says}: it diverged; a smaller train.lr, or a longer train.warmup")
    if first is not None and last > RISEN * first:
        return Check(LOSS_FELL, WARN, f"{says}: it rose")
    return _beyond_noise(_step_losses(loop), says)


def _step_losses(loop: TrainingLoop) -> list[float]:
    """Return the loss of each step that was logged and finite."""
    rows = read_log(loop.folder.of(LOG)) if loop.folder is not None else []
    return [row["loss"] for row in rows if isinstance(row.get("loss"), float)]


def _beyond_noise(losses: Sequence[float], says: str) -> Check:
    fall = loss_drop(losses)
    if fall is None:
        return Check(
            LOSS_FELL, NOT_RUN, f"{says}; {count(len(losses), 'step')} of {MIN_STEPS} that tell a fall from noise"
        )
    if fall.is_clear:
        return Check(LOSS_FELL, PASS, says)
    first, last = apart(fall.first, fall.last)
    ends = f"{first} to {last} over the first and last {fall.steps} steps, noise {fall.noise:.2g}"
    return Check(LOSS_FELL, WARN, f"{says}; {ends}: it fell by no more than that")
