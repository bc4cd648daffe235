"""A task whose model is sharded: every rank takes part whenever the task runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ..job.job import Job
from ..tasks._task import Batch, Loss, Task
from .ranks import SINGLE_PROCESS, ParallelModel

__all__ = ["shard_task", "single_process_job"]

T = TypeVar("T")


def shard_task(job: Job, model: ParallelModel) -> Job:
    """Return the job with a task that runs the sharded ``model`` on all ranks."""
    task: Any = _ShardedTask(job.task, model)
    return replace(job, task=task)


def single_process_job(job: Job) -> Job:
    """Return the job as if this were the only process: its task runs a model that is not sharded."""
    task: Any = getattr(job.task, "unsharded", job.task)
    # Several ranks never compile the whole loss, but a single process would.
    settings = job.settings if job.ranks.size == 1 else replace(job.settings, compile="off")
    return replace(job, ranks=SINGLE_PROCESS, settings=settings, task=task)


class _ShardedTask:
    """A task whose model is sharded: its methods run the model through ``ShardedModel``, together on all ranks."""

    def __init__(self, task: Task, model: ParallelModel) -> None:
        self.unsharded, self._model = task, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unsharded, name)

    def _task_of(self, module: nn.Module) -> Task:
        """Return the original task; first check that ``module`` is the sharded model."""
        assert module is self._model.module
        return self.unsharded

    def loss(self, module: nn.Module, batch: Batch) -> Loss:
        return self._model(partial(_swapped, self._task_of(module).loss, batch))

    @property
    def uniform_loss(self) -> Any:
        function = getattr(self.unsharded, "uniform_loss", None)
        return None if function is None else lambda module, batch: self._model(partial(_swapped, function, batch))

    def evaluate(self, module: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return self._model(partial(_swapped, self._task_of(module).evaluate, batches))


def _swapped(function: Callable[[nn.Module, Any], T], given: Any, module: nn.Module) -> T:
    return function(module, given)
