"""A task of a model that several processes hold in parts: whatever it does with the model goes through all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from .job import Job
from .spreading import Spread
from .tasks._task import Batch, Loss, Task

__all__ = ["through"]


def through(job: Job, spread: Spread) -> Job:
    """Return a job whose task looks at the model through ``spread``, where that is in parts."""
    if not spread.is_sharded:
        return job
    task: Any = _Through(job.work.task, spread)
    return replace(job, work=replace(job.work, task=task))


class _Through:
    """A task as it is, but that each process puts its part to what is asked of the model."""

    def __init__(self, task: Task, spread: Spread) -> None:
        self.task, self._spread = task, spread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return self._spread(partial(_loss, self.task, batch))

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        return self._spread(lambda inner: self.task.uniform_loss(inner, batch))

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return self._spread(lambda inner: self.task.evaluate(inner, batches))


def _loss(task: Task, batch: Batch, model: nn.Module) -> Loss:
    return task.loss(model, batch)
