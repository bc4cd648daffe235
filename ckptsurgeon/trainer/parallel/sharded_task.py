"""A task of a model that several processes hold in parts: whatever it does with the model goes through all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from ..job.job import Job
from ..tasks._task import Batch, Loss, Task
from .forward_proxy import ParallelModel
from .ranks import SINGLE_PROCESS

__all__ = ["shard_task", "single_process_job"]


def shard_task(job: Job, spread: ParallelModel) -> Job:
    """Return a job whose task looks at the model through ``spread``, where that is in parts."""
    if not spread.is_sharded:
        return job
    task: Any = _ShardedTask(job.work.task, spread)
    return replace(job, work=replace(job.work, task=task))


def single_process_job(job: Job) -> Job:
    """Return a job that this process goes on with by itself: its task sees whatever model it is given."""
    task: Any = getattr(job.work.task, "alone", job.work.task)
    settings = job.settings if job.ranks.size == 1 else replace(job.settings, compile="off")  # as it was trained
    return replace(job, ranks=SINGLE_PROCESS, settings=settings, work=replace(job.work, task=task))


class _ShardedTask:
    """A task as it is, but that each process puts its part to what is asked of the model."""

    def __init__(self, task: Task, spread: ParallelModel) -> None:
        self.alone, self._spread = task, spread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.alone, name)

    def _of(self, model: nn.Module) -> Task:
        """Return the task, which is asked about the one model alone."""
        assert model is self._spread.model
        return self.alone

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return self._spread(partial(_loss, self._of(model), batch))

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        return self._spread(partial(_uniform_loss, self._of(model), batch))

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return self._spread(partial(_evaluate, self._of(model), batches))


def _loss(task: Task, batch: Batch, model: nn.Module) -> Loss:
    return task.loss(model, batch)


def _uniform_loss(task: Task, batch: Batch, model: nn.Module) -> float:
    return task.uniform_loss(model, batch)


def _evaluate(task: Task, batches: Iterable[Batch], model: nn.Module) -> dict[str, float]:
    return task.evaluate(model, batches)
