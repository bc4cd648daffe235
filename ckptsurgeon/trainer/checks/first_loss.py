"""The loss before any step, against that of outputs that say nothing."""

from __future__ import annotations

import math

from torch import nn

from ...util.text import apart, percent
from ..config.settings import Settings
from ..loop.evaluating import loss_per_item, uniform_loss
from ..tasks._task import Batch, Task
from ._check import FAIL, PASS, WARN, Check

__all__ = ["first_loss"]

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
