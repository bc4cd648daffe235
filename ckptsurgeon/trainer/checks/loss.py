"""The loss: before the first step against that of uniform outputs, and whether it fell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ...util.text import apart, count, percent
from ..config.settings import Settings
from ..data.source import first_batch
from ..evaluation import loss_per_item, uniform_loss
from ..log import LOG_FILE as LOG
from ..log import read_log
from ..loop import TrainingLoop
from ..tasks._task import Batch, Task
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["LOSS_FELL", "MIN_STEPS", "LossDrop", "first_loss", "loss_drop", "loss_fell"]

MIN_STEPS = 6
"""Steps of which a fall can be told from noise: three at each end."""
SHARE = 10
ERRORS = 2.0
"""Standard errors beyond which a fall is no chance: of losses that only vary, one run in 20 to 40 seems to fall."""
ROUNDED = 1e-3
"""The share of a loss below which a fall is nothing: so much does half precision round."""
OF_NORMAL = 0.6745 * math.sqrt(2)
"""The median difference of two normal values, in standard deviations."""


@dataclass(frozen=True)
class LossDrop:
    """The mean loss of the first and of the last ``steps`` steps, and by how much the two differ by chance."""

    first: float
    last: float
    noise: float
    steps: int

    @property
    def is_clear(self) -> bool:
        """Whether the loss fell by more than its noise."""
        return self.first - self.last > self.noise


def loss_drop(losses: Sequence[float]) -> LossDrop | None:
    """Return how a series of losses fell from its first tenth to its last; None where it is too short to tell.

    The noise is two standard errors of the difference of the two means. How much a loss varies from step to step is
    taken from the median difference of neighbours: neither a steady fall nor a steep beginning is in it. What rounding
    may have done is noise too.
    """
    if len(losses) < MIN_STEPS:
        return None
    steps = max(MIN_STEPS // 2, len(losses) // SHARE)
    deviation = statistics.median(abs(after - before) for before, after in pairwise(losses)) / OF_NORMAL
    first, last = (sum(part) / steps for part in (losses[:steps], losses[-steps:]))
    noise = ERRORS * deviation * math.sqrt(2 / steps)
    return LossDrop(first, last, max(noise, ROUNDED * abs(first)), steps)


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
    batch = first_batch(job.train, job.settings.seed)
    last = loss_per_item(loop.model, job.task, [batch], settings=job.settings)
    uniform = uniform_loss(loop.model, job.task, batch, settings=job.settings)
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


TOLERANCE = 0.25


def first_loss(model: nn.Module, task: Task, batch: Batch, *, settings: Settings, drawn: bool) -> Check:
    """Compare the first loss with the loss of uniform outputs under the same criterion.

    For CTC that is no ln V: sums over alignments gave 7.64 per label where ln V was 3.33. ``drawn`` says whether part
    of the model is new; where nothing is, a low loss is what is hoped for.
    """
    name = "first loss"
    found = loss_per_item(model, task, [batch], settings=settings)
    if not math.isfinite(found):
        return Check(name, FAIL, f"{found}")
    uniform = uniform_loss(model, task, batch, settings=settings)
    if not math.isfinite(uniform) or uniform <= 0:
        return Check(name, PASS, f"{found:.3g}; uniform outputs say nothing here ({uniform:.3g})")
    share = found / uniform - 1
    said, wanted = apart(found, uniform)
    says = f"{said} where uniform outputs give {wanted} ({_compared(share)})"
    if share < -TOLERANCE and not drawn:
        return Check(name, PASS, f"{says}: nothing of the model is new")
    return Check(name, WARN if abs(share) > TOLERANCE else PASS, says)


def _compared(share: float) -> str:
    """Return ``32 % more``, ``<1 % less`` or ``the same``."""
    return f"{percent(abs(share))} {'more' if share > 0 else 'less'}" if share else "the same"
