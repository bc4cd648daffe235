"""Computes figures of a split and losses of batches, without changing anything that the run depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from ..errors import ConfigError
from ..util.text import brief_repr, escape
from .config.settings import Settings
from .state.ema import EMA
from .system.device import autocast
from .system.random_state import preserve_random_state
from .tasks._load import explain_task_errors
from .tasks._task import Batch, Task

__all__ = ["evaluate", "evaluation_mode", "loss_per_item", "uniform_loss"]

_LIKE = 'As in {"loss": 1.5, "cer": 0.25}.'


@contextmanager
def evaluation_mode(model: nn.Module, average: EMA | None = None) -> Iterator[None]:
    """Put a model, with its average as weights if there is one, in evaluation mode inside the block, without gradients.

    Random states are restored: evaluating more often must not change what is trained.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with preserve_random_state(), torch.no_grad(), average.applied() if average is not None else nullcontext():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings, average: EMA | None = None
) -> dict[str, float]:
    """Return the task's figures over batches; raises ConfigError if a user's task returns no figures."""
    device = next(model.parameters()).device
    with evaluation_mode(model, average), autocast(settings, device), explain_task_errors(settings.task):
        found = task.evaluate(model, (batch.to(device) for batch in batches))
    return _figures(found, task)


def _figures(found: object, task: Task) -> dict[str, float]:
    """Return what a task returned as figures; raises ConfigError if it is something else."""
    name = f"evaluate of the task {escape(type(task).__name__)}"
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{name} returns {brief_repr(found)}, not figures by name.", hint=_LIKE)
    made = {}
    for key, value in found.items():
        try:
            made[str(key)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{name} gives {key!r} as {brief_repr(value)}, not a number.", hint=_LIKE) from error
    return made


def loss_per_item(
    model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings, part: str = ""
) -> float:
    """Return the loss of batches together, or one part of the loss, divided by the number of their items."""
    device = next(model.parameters()).device
    total, items = 0.0, 0
    with evaluation_mode(model), autocast(settings, device):
        for batch in batches:
            loss = task.loss(model, batch.to(device))
            total += float(loss.parts[part] if part else loss.total)
            items += int(loss.items)
    return total / max(items, 1)


def uniform_loss(model: nn.Module, task: Task, batch: Batch, *, settings: Settings) -> float | None:
    """Return the loss per item of uniform outputs; None if the task does not define it."""
    function = getattr(task, "uniform_loss", None)
    if function is None:
        return None
    device = next(model.parameters()).device
    with evaluation_mode(model), autocast(settings, device), explain_task_errors(settings.task):
        return float(function(model, batch.to(device)))
