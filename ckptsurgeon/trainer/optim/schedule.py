"""The learning rate as a share of its full height: warm-up, then down by a cosine, a line or not at all."""

from __future__ import annotations

import math

from ..config.settings import Settings

__all__ = ["lr_factor"]


def lr_factor(settings: Settings, step: int) -> float:
    """Return what the learning rate of the ``step``-th step, counted from 0, is multiplied by."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    falling = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_lr + (1 - settings.final_lr) * falling
