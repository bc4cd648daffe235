"""Whether a model and a task, both of which may be the user's own code, go together at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...util.text import brief_repr, count, escape
from ..loop.evaluating import evaluate, evaluation_mode, loss_per_item
from ..parallel.ranks import is_communication_error
from ..system.device import autocast
from ..tasks._load import is_user_task
from ..tasks._task import Batch, Loss
from .job import Job, unknown_metric_error

__all__ = ["smoke_test"]


def smoke_test(job: Job, model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError where model and task do not go together, or the task gives no such metric.

    Both may be the user's own code.
    """
    figures = {}
    try:
        if is_user_task(job.work.task):
            _check_loss(job, model, batch)
        loss_per_item(model, job.work.task, [batch], settings=job.settings)
        if job.work.dev is not None:
            figures = evaluate(model, job.work.task, [batch], settings=job.settings)
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_communication_error(error):  # another process ended
            raise
        raise ConfigError(
            f"the task {escape(job.settings.task)} cannot use this model: {type(error).__name__}: "
            f"{escape(str(error), 500)}.",
            hint="CKPT_DEBUG=1 shows where it happened.",
        ) from error
    if job.work.dev is not None and job.metric not in figures:
        raise unknown_metric_error(job.metric, figures)


def _check_loss(job: Job, model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError for a loss that is no Loss, or is of nothing."""
    with evaluation_mode(model), autocast(job.settings, job.device):
        loss: object = job.work.task.loss(model, batch.to(job.device))
    name = f"loss of the task {escape(job.settings.task)}"
    if not isinstance(loss, Loss):
        raise ConfigError(f"{name} returns {brief_repr(loss)}, no Loss(total, items, parts).")
    if not _is_of_something(loss):
        raise ConfigError(
            f"{name} is of {brief_repr(loss.items)} items, for the {count(len(batch.names), 'example')} of a batch.",
            hint="items is what the sum is divided by: how many labels, frames or examples it is over.",
        )
    if not isinstance(loss.total, Tensor) or loss.total.numel() != 1 or not isinstance(loss.parts, Mapping):
        raise ConfigError(f"{name} has no total that is one number as a tensor, or no parts by name.")


def _is_of_something(loss: Loss) -> bool:
    """Whether a loss counts items; none where CTC can spell no clip of a batch are as they should be."""
    items: object = loss.items
    if isinstance(items, Tensor):
        items = int(items) if items.numel() == 1 and not items.is_floating_point() else None
    least = 0 if loss.too_short is not None and int(loss.too_short) else 1
    return isinstance(items, int) and items >= least
