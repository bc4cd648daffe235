"""A run that ends worse than it began, or worse than saying nothing, has not learned: it has diverged."""

from __future__ import annotations

import math

from ..evaluating import loss_per_item, uniform_loss
from ..loop import Loop
from ..source import first_batch
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["NAME", "diverged"]

NAME = "loss fell"
ABOVE = 1.02
"""What a loss is above another by that is no chance of one batch."""
RISEN = 1.25


def diverged(loop: Loop) -> Check:
    """Hold the loss of the first batch after the last step against what it was, and what saying nothing costs."""
    standing, job = loop.standing, loop.job
    if not standing.step:
        return Check(NAME, NOT_RUN, "no step was taken")
    batch = first_batch(job.work.train, job.settings.seed)
    last = loss_per_item(loop.model, job.work.task, [batch], settings=job.settings)
    uniform = uniform_loss(loop.model, job.work.task, batch, settings=job.settings)
    first = standing.first_loss
    says = f"{'nan' if first is None else f'{first:.3g}'} to {last:.3g} on the first batch"
    bounds = [one for one in (first, uniform) if one is not None and math.isfinite(one) and one > 0]
    if math.isfinite(uniform) and uniform > 0:
        says += f", {uniform:.3g} of uniform outputs"
    if not math.isfinite(last):
        return Check(NAME, FAIL, says)
    if bounds and last > ABOVE * max(bounds):
        return Check(NAME, FAIL, f"{says}: it diverged; a smaller train.lr, or a longer train.warmup")
    if first is not None and last > RISEN * first:
        return Check(NAME, WARN, f"{says}: it rose")
    return Check(NAME, PASS, says)
