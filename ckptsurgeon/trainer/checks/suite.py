"""Runs all checks in order: before the first step, during training, and after the last step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...planning.plan.plan import Plan
from ...util.text import brief_repr, count, escape
from ..data.source import first_batch
from ..evaluation import evaluate, evaluation_mode, loss_per_item
from ..folder.checkpoint_files import MODEL
from ..job.job import Job, new_part_masks, unknown_metric_error
from ..log import Observer
from ..loop import TrainingLoop
from ..parallel.lost_ranks import is_communication_error
from ..run.controls import KNOWLEDGE_MOVED, knowledge_moved
from ..run.result import Controls
from ..state.training_state import COLLAPSED, NONFINITE
from ..system.device import autocast
from ..tasks._task import Batch, Loss, is_higher_better, is_user_task
from .activations import activation_scale, dead_units, layer_activations
from .check import NOT_RUN, Check
from .loss import batch_independence, first_loss, loss_fell
from .saved import BEST_REOPENED, REOPENED, RESUMED, SavedWeights, reload_in_new_process, resume_is_exact
from .training import ONE_BATCH as BY_HEART
from .training import (
    blank_share,
    clips_long_enough,
    finite_figures,
    finite_steps,
    frozen_unchanged,
    gradient_norm,
    not_collapsed,
    overfits_one_batch,
    trained_tensors_moved,
    update_sizes,
)
from .weights import INITIALISED as DRAWN
from .weights import finite_tensors, initialised_tensors, loaded_tensors, no_constant_tensors, ties_kept

__all__ = ["checks_after", "checks_before", "checks_during", "collect_checks", "smoke_test"]

SHARDED = "each process holds a shard of the model (--strategy fsdp)"
"""The reason why some checks do not run: they need the whole model in one process."""


def collect_checks(when: str, checks: Iterable[Check], tell: Observer) -> tuple[Check, ...]:
    """Run the checks by iterating over ``checks``; return their results, with ``when`` in the field ``when``.

    Some checks take long, so the observer ``tell`` is called after each check, with the number of checks done.
    """
    made: list[Check] = []
    tell({"event": "checking", "when": when, "done": 0})
    for check in checks:
        made.append(replace(check, when=when))
        tell({"event": "checking", "when": when, "done": len(made)})
    return tuple(made)


def checks_before(job: Job, model: nn.Module, plan: Plan | None) -> Iterator[Check]:
    """Yield the results of the checks of a model before its first step.

    ``plan`` is the plan by which the job's initial weights were loaded (None if there are none). Raises ConfigError if
    model and task do not fit, or if the task does not return the metric.
    """
    task, settings, target = job.task, job.settings, job.target
    batch = first_batch(job.train, settings.seed)
    smoke_test(job, model, batch)
    new = job.init.drawn if job.init is not None else frozenset(target.tensors)
    seed = settings.seed if job.init is None or job.init.seed is None else job.init.seed
    yield loaded_tensors(model, job.init, plan)
    yield ties_kept(model, target.ties)
    if job.is_sharded:
        yield Check(DRAWN, NOT_RUN, SHARDED)
    else:
        yield initialised_tensors(model, target, new, seed, parts=new_part_masks(job, plan))
    yield finite_tensors(model)
    yield no_constant_tensors(model, target, seed, job.init.zeroed if job.init is not None else ())
    yield first_loss(model, task, batch, settings=settings, drawn=job.init is None or bool(job.init.new))
    layers = layer_activations(model, task, batch, settings=settings)
    yield activation_scale(layers)
    yield dead_units(layers)
    yield batch_independence(model, task, batch, settings=settings)


def checks_during(loop: TrainingLoop) -> Iterator[Check]:
    """Yield the results of the checks of the training itself; ``loop`` must have taken its last step."""
    state = loop.state
    yield frozen_unchanged(state)
    yield loss_fell(state, loop.folder)
    yield trained_tensors_moved(state)
    yield update_sizes(state)
    yield gradient_norm(state)
    yield finite_steps(state)
    yield not_collapsed(state)
    yield finite_tensors(state.model, state.ema.tensors if state.ema is not None else None)
    yield finite_figures(state.progress.figures, ("loss", loop.job.metric))
    yield blank_share(state.progress.figures, steps=state.progress.step, diverged=state.progress.ended == NONFINITE)
    yield clips_long_enough(state.progress)


def checks_after(
    loop: TrainingLoop, sets: Sequence[str], controls: Controls | None, *, overfitting: bool
) -> Iterator[Check]:
    """Yield the results of the checks after the last step; a check that raises an error gets the status NOT RUN.

    ``sets`` are the ``--set`` strings of the run, ``controls`` the control runs (None without ``--controls``).
    ``overfitting`` is true if the run trains on one batch only.
    """
    job, progress = loop.job, loop.state.progress
    higher = is_higher_better(job.task, loop.job.metric)
    yield from _guarded(
        (BY_HEART,),
        lambda: [
            overfits_one_batch(progress.figures, loop.job.metric, progress.step, higher=higher)
            if overfitting
            else Check(BY_HEART, NOT_RUN, "runs only with --overfit-one-batch")
        ],
    )
    yield from _guarded((RESUMED,), lambda: [_resumed(loop)])
    if controls is None:
        yield Check(KNOWLEDGE_MOVED, NOT_RUN, "--controls also trains from scratch and from permuted weights")
    else:
        yield knowledge_moved(controls)
    yield from _guarded((REOPENED, BEST_REOPENED), lambda: _reopened(loop, sets, overfitting=overfitting))


def _resumed(loop: TrainingLoop) -> Check:
    if loop.state.parallel.is_sharded:
        return Check(RESUMED, NOT_RUN, SHARDED)
    return resume_is_exact(loop.job, step_s=loop.state.progress.seconds / max(loop.state.progress.step, 1))


def _guarded(names: Sequence[str], make: Callable[[], Iterable[Check]]) -> tuple[Check, ...]:
    """Return the checks that ``make`` returns; if it raises an error, return a check for each name in ``names``.

    ``names`` are the names of the checks that ``make`` should return. After an error, their status is NOT RUN, and the
    error is the reason.
    """
    try:
        return tuple(make())
    except Exception as error:
        why = f"an error occurred: {type(error).__name__}: {escape(str(error), 300)}"
        return tuple(Check(name, NOT_RUN, why) for name in names)


def _reopened(loop: TrainingLoop, sets: Sequence[str], *, overfitting: bool) -> Iterator[Check]:
    """Check the last and the best weights: a new process that reads them must compute the same loss.

    ``sets`` are the ``--set`` strings of the run; ``overfitting`` is true if the run trains on one batch only.
    """
    found = [_last_weights(loop), _best_weights(loop)]
    saved = [one for one in found if isinstance(one, SavedWeights)]
    made = {
        check.name: check
        for check in (reload_in_new_process(loop.job, saved, sets=sets, overfitting=overfitting) if saved else ())
    }
    yield from (made[one.name] if isinstance(one, SavedWeights) else one for one in found)


def _last_weights(loop: TrainingLoop) -> SavedWeights | Check:
    folder, step = loop.folder, loop.state.progress.step
    if loop.state.parallel.is_sharded:
        return Check(REOPENED, NOT_RUN, SHARDED)
    if folder is None or not folder.saved_steps:
        return Check(REOPENED, NOT_RUN, "nothing was saved")
    if folder.last_step() != step:
        return Check(REOPENED, NOT_RUN, f"step {step} was not saved; the last saved step is {folder.last_step()}")
    return SavedWeights(REOPENED, folder.of("last", MODEL), _first_loss(loop), step=max(step - 1, 0))


def _best_weights(loop: TrainingLoop) -> SavedWeights | Check:
    """Return the file of the best weights and their loss; the loss is over ``dev`` if there is such a split.

    If the loss cannot be compared after a reload, return a check with the status NOT RUN and the reason.
    """
    folder, progress = loop.folder, loop.state.progress
    if folder is None or not os.path.exists(folder.best):
        return Check(BEST_REOPENED, NOT_RUN, "no best model was saved")
    if loop.job.dev is not None:
        if progress.best_loss is None:
            return Check(BEST_REOPENED, NOT_RUN, "the task returns no loss over dev")
        return SavedWeights(
            BEST_REOPENED, folder.best, progress.best_loss, dev=True, step=max(progress.best_step - 1, 0)
        )
    if loop.state.parallel.is_sharded:
        return Check(BEST_REOPENED, NOT_RUN, SHARDED)
    if progress.ended in (NONFINITE, COLLAPSED):
        return Check(BEST_REOPENED, NOT_RUN, "the best weights are from an earlier step")
    with loop.state.ema.applied() if loop.state.ema is not None else nullcontext():
        return SavedWeights(BEST_REOPENED, folder.best, _first_loss(loop), step=max(progress.step - 1, 0))


def _first_loss(loop: TrainingLoop) -> float:
    job = loop.job
    return loss_per_item(loop.model, job.task, [first_batch(job.train, job.settings.seed)], settings=job.settings)


def smoke_test(job: Job, model: nn.Module, batch: Batch) -> None:
    """Compute the loss of a batch, and the metrics if there is a dev split, to find out whether model and task fit.

    Model and task may be the user's code. Raises ConfigError if they do not fit, or if the task does not return the
    metric.
    """
    figures = {}
    try:
        if is_user_task(job.task):
            _check_loss(job, model, batch)
        loss_per_item(model, job.task, [batch], settings=job.settings)
        if job.dev is not None:
            figures = evaluate(model, job.task, [batch], settings=job.settings)
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_communication_error(error):  # another rank has ended
            raise
        raise ConfigError(
            f"the task {escape(job.settings.task)} cannot use this model: {type(error).__name__}: "
            f"{escape(str(error), 500)}.",
            hint="Set the environment variable CKPT_DEBUG=1 to see where the error happened.",
        ) from error
    if job.dev is not None and job.metric not in figures:
        raise unknown_metric_error(job.metric, figures)


def _check_loss(job: Job, model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError if the task's method ``loss`` does not return a Loss of one item or more for the batch."""
    with evaluation_mode(model), autocast(job.settings, job.device):
        loss: object = job.task.loss(model, batch.to(job.device))
    name = f"the method loss() of the task {escape(job.settings.task)}"
    if not isinstance(loss, Loss):
        raise ConfigError(
            f"{name} returns {brief_repr(loss)}, not a Loss.",
            hint="Return Loss(total, items, parts) of ckptsurgeon.trainer.tasks._task.",
        )
    if not _has_items(loss):
        raise ConfigError(
            f"{name} returns a Loss whose field items is {brief_repr(loss.items)}, for a batch of "
            f"{count(len(batch.names), 'example')}.",
            hint="total is a sum of losses over labels, frames or examples: set items to their number, 1 or more.",
        )
    if not isinstance(loss.total, Tensor) or loss.total.numel() != 1 or not isinstance(loss.parts, Mapping):
        raise ConfigError(
            f"{name} returns a Loss whose total or parts have a wrong type.",
            hint="The total of a Loss must be a tensor of one number, and its parts a dict of tensors.",
        )


def _has_items(loss: Loss) -> bool:
    """Return whether a loss has a valid number of items: 1 or more, or 0 if clips were too short for CTC."""
    items: object = loss.items
    if isinstance(items, Tensor):
        items = int(items) if items.numel() == 1 and not items.is_floating_point() else None
    least = 0 if loss.too_short is not None and int(loss.too_short) else 1
    return isinstance(items, int) and items >= least
