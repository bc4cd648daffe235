"""Tries the longest batch before the first step: if the run does not fit into memory, it fails immediately."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .config.settings import Settings
from .data.loader import Batches
from .parallel.parallel_model import ParallelModel
from .state.model_tensors import own_numbers, restore_numbers
from .state.training_state import TrainingState
from .step_result import BufferSnapshot
from .system.device import autocast, explain_nondeterminism
from .system.random_state import preserve_random_state
from .tasks._task import Batch, Task, begin_step

__all__ = ["try_longest_batch"]


def try_longest_batch(state: TrainingState) -> None:
    """Run the longest batch of ``train`` forward and backward, as a step does, without changing the state.

    Does nothing if the model is sharded, or if ``train`` is not a ``Batches``, because other sources cannot return
    their longest batch. Raises torch.OutOfMemoryError, and ConfigError if the settings ask for determinism and torch
    has no deterministic implementation of an operation.
    """
    job = state.job
    if not isinstance(job.train, Batches) or state.parallel.is_sharded:
        return
    batch = job.train.longest(rank=job.ranks.rank, of=job.ranks.size)
    begin_step(job.task, state.model, state.progress.step)
    numbers, buffers = own_numbers(state.model), BufferSnapshot(state.model)
    moments = _moments(state)
    try:
        with preserve_random_state(), explain_nondeterminism(job.settings):
            _run(state.parallel, job.task, batch, job.settings)
    finally:
        del moments
        state.model.zero_grad(set_to_none=True)
        buffers.restore_if(torch.ones((), dtype=torch.bool))
        restore_numbers(state.model, numbers)


def _run(model: ParallelModel, task: Task, batch: Batch, settings: Settings) -> None:
    device = next(model.module.parameters()).device
    with model.no_sync():
        with autocast(settings, device):
            total: Tensor = model(partial(_total, task, batch.to(device)))
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]


def _total(task: Task, batch: Batch, module: nn.Module) -> Tensor:
    return task.loss(module, batch).total


def _moments(state: TrainingState) -> list[Tensor]:
    """Return uninitialised tensors that take as much GPU memory as the optimizer's state will take.

    Returns [] on a CPU, or if this state exists already.
    """
    optimizer = state.optimizer
    if state.job.device.type == "cpu" or optimizer.inner.state:
        return []
    return [torch.empty_like(one) for one in optimizer.parameters for _ in range(optimizer.moments)]
