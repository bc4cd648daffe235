"""Runs a model without changing its run: evaluations of a split or of batches, and a trial of the longest batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..util.text import brief_repr, escape
from .config.settings import Settings
from .data.loader import Batches
from .data.source import BatchSource, whole_batches
from .parallel.ranks import ParallelModel
from .state.ema import EMA
from .state.model_tensors import BufferSnapshot, own_numbers, restore_numbers
from .state.training_state import TrainingState
from .system.device import autocast, explain_nondeterminism, without_cudnn_attention
from .system.random_state import preserve_random_state
from .tasks._task import Batch, Task, begin_step, explain_task_errors

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_shared",
    "evaluation_mode",
    "loss_per_item",
    "try_longest_batch",
    "uniform_loss",
]


_LIKE = 'Return a dict of numbers, such as {"loss": 1.5, "cer": 0.25}.'


@contextmanager
def evaluation_mode(model: nn.Module, average: EMA | None = None) -> Iterator[None]:
    """Inside the block, put a model in evaluation mode, without gradients.

    If ``average`` is given, its weights replace the weights of the model inside the block. The random states are
    restored after the block, so that evaluations do not change the training. cuDNN's attention is not used: it is slow
    whenever a length occurs for the first time, and the clips of an evaluation have many lengths.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with ExitStack() as inside:
            inside.enter_context(preserve_random_state())
            inside.enter_context(torch.no_grad())
            inside.enter_context(without_cudnn_attention())
            if average is not None:
                inside.enter_context(average.applied())
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings, average: EMA | None = None
) -> dict[str, float]:
    """Return the metrics that a task computes over batches, such as loss and error rate, by name.

    If the moving average ``average`` is given, its weights are evaluated in place of the weights of the model. Raises
    ConfigError if the task does not return a dict of numbers.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model, average), autocast(settings, device), explain_task_errors(settings.task):
        found = task.evaluate(model, (batch.to(device) for batch in batches))
    return _figures(found, task, "evaluate")


class Evaluation(NamedTuple):
    """The evaluation of a split: the metrics by name (``figures``), and the ``rows`` from which they were computed.

    There is one row for each example, but there are no rows if the task has no method ``measure``, or if the model is
    sharded.
    """

    figures: dict[str, float]
    rows: Sequence[Mapping[str, Any]] = ()


def evaluate_shared(
    parallel: ParallelModel, task: Task, source: BatchSource, *, settings: Settings, average: EMA | None = None
) -> Evaluation:
    """Evaluate a split on all ranks together: each rank evaluates some of the batches. Every rank must call this.

    The batches are the same as in one process, so the metrics are the same. A task without ``measure`` is evaluated by
    rank 0 alone. A sharded model is evaluated by every rank on all batches, because a forward pass needs all shards.
    """
    model, ranks, is_sharded = parallel.module, parallel.ranks, parallel.is_sharded
    measure, figures = getattr(task, "measure", None), getattr(task, "figures", None)
    if is_sharded or measure is None or figures is None:
        alone: dict[str, float] = {}
        if is_sharded or ranks.is_main:
            alone = evaluate(model, task, source.read(0, 0), settings=settings, average=average)
        return Evaluation(ranks.broadcast(alone))
    device = next(model.parameters()).device
    rows = []
    with evaluation_mode(model, average), autocast(settings, device), explain_task_errors(settings.task):
        for number, batch in whole_batches(source, ranks):
            rows += [(number, row) for row in measure(model, batch.to(device))]
        gathered = sorted((one for part in ranks.all_gather(rows) for one in part), key=lambda one: one[0])
        every = [row for _, row in gathered]
        found = figures(every) if ranks.is_main else {}
    return Evaluation(ranks.broadcast(_figures(found, task, "figures") if ranks.is_main else {}), every)


def _figures(found: object, task: Task, method: str) -> dict[str, float]:
    """Return ``found``, the result of a task's ``method``, as a dict of floats; raise ConfigError if it is not one."""
    name = f"the method {method} of the task {escape(type(task).__name__)}"
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{name} returns {brief_repr(found)}, not a dict of numbers.", hint=_LIKE)
    made = {}
    for key, value in found.items():
        try:
            made[str(key)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{name} returns {brief_repr(value)} for {key!r}, not a number.", hint=_LIKE) from error
    return made


def loss_per_item(
    model: nn.Module, task: Task, batches: Iterable[Batch], *, settings: Settings, part: str = ""
) -> float:
    """Return the loss over all batches, divided by the number of items, such as labels.

    If ``part`` is not '', the part of the loss with this name is used in place of the total.
    """
    device = next(model.parameters()).device
    total, items = 0.0, 0
    with evaluation_mode(model), autocast(settings, device):
        for batch in batches:
            loss = task.loss(model, batch.to(device))
            total += float(loss.parts[part] if part else loss.total)
            items += int(loss.items)
    return total / max(items, 1)


def uniform_loss(model: nn.Module, task: Task, batch: Batch, *, settings: Settings) -> float | None:
    """Return the loss per item if all answers were equally likely; None if the task does not define this loss."""
    function = getattr(task, "uniform_loss", None)
    if function is None:
        return None
    device = next(model.parameters()).device
    with evaluation_mode(model), autocast(settings, device), explain_task_errors(settings.task):
        return float(function(model, batch.to(device)))


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
