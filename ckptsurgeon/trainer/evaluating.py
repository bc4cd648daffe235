"""Figures of a split: the model as it would be used, and nothing of the run disturbed by looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from .device import autocast
from .ema import Average
from .random_state import random_kept
from .settings import Settings
from .tasks._task import Batch, Task

__all__ = ["evaluate", "looking", "loss_per_item"]


@contextmanager
def looking(model: nn.Module, average: Average | None = None) -> Iterator[None]:
    """Put a model (as its average, where there is one) in evaluation mode for a while, without gradients."""
    modes = {module: module.training for module in model.modules()}
    try:
        with random_kept(), torch.no_grad(), average.in_place() if average is not None else nullcontext():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings, average: Average | None = None
) -> dict[str, float]:
    """Return a task's figures over batches."""
    device = next(model.parameters()).device
    with looking(model, average), autocast(settings, device):
        found = task.evaluate(model, (batch.to(device) for batch in batches))
    return {name: float(value) for name, value in found.items()}


def loss_per_item(model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings) -> float:
    """Return the loss of batches, divided by all their items."""
    device = next(model.parameters()).device
    total, items = 0.0, 0
    with looking(model), autocast(settings, device):
        for batch in batches:
            loss = task.loss(model, batch.to(device))
            total, items = total + float(loss.total), items + int(loss.items)
    return total / max(items, 1)
