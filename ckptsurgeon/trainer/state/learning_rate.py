"""The learning rate of each step: warm-up and a schedule. Two schedules react to a metric that stops improving."""

from __future__ import annotations

import math

from ..config.settings import ANNEALED, Settings
from .run_progress import RunProgress

__all__ = ["anneal", "lr_factor"]


def lr_factor(settings: Settings, step: int) -> float:
    """Return the factor of ``train.lr`` at ``step`` (counted from 0) by warm-up and schedule, without ``train.anneal``.

    After the warm-up, ``tri_stage`` stays at 1 for ``hold`` steps and then falls exponentially
    (https://arxiv.org/abs/1904.08779, section 3.2); cosine and linear begin to fall right after the warm-up.
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule in ("constant", *ANNEALED):
        return 1.0
    begins = settings.warmup + (settings.hold if settings.schedule == "tri_stage" else 0)
    done = max(0.0, (step - begins) / max(1, settings.steps - begins))
    if settings.schedule == "tri_stage":
        return math.pow(settings.final_lr, done)
    falling = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_lr + (1 - settings.final_lr) * falling


def anneal(settings: Settings, progress: RunProgress, value: float, *, higher_is_better: bool) -> None:
    """Multiply the learning rate by ``train.anneal`` if an evaluation's metric, ``value``, has not improved enough.

    ``newbob`` compares with the previous evaluation (speechbrain/nnet/schedulers.py, NewBobScheduler), ``plateau`` with
    the best so far (torch.optim.lr_scheduler.ReduceLROnPlateau). ``anneal_threshold`` is the smallest improvement that
    is enough, as a share of the earlier metric. The first ``anneal_patience`` evaluations without enough improvement do
    not lower the learning rate. NaN is never an improvement.
    """
    if settings.schedule not in ANNEALED:
        return
    other = progress.compared
    if other is None:
        progress.compared = None if math.isnan(value) else value
        return
    gain = (value - other if higher_is_better else other - value) / max(abs(other), 1e-12)
    is_best = settings.schedule == "plateau"
    is_better = gain > settings.anneal_threshold if is_best else gain >= settings.anneal_threshold
    if not math.isnan(value) and (is_better or not is_best):
        progress.compared = value
    if is_better:
        progress.stalled = 0 if is_best else progress.stalled  # as in the two classes: newbob keeps the count
    elif progress.stalled < settings.anneal_patience:
        progress.stalled += 1
    else:
        progress.lr_scale, progress.stalled = progress.lr_scale * settings.anneal, 0
