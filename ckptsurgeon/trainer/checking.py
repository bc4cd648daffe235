"""All checks, in their order: before the first step, during, and after the last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..plan import Plan
from ..text import brief_repr, count, escape
from .checks import NOT_RUN, Check
from .checks.activations import dead_units, layers_of, scale
from .checks.blanks import blanks, too_short
from .checks.diverged import diverged
from .checks.drawn import drawn_fit
from .checks.finite import figures_finite, finite, varied
from .checks.first_loss import first_loss
from .checks.gradient import gradient_norm, nonfinite
from .checks.held import held
from .checks.independence import independent
from .checks.knowledge import knowledge
from .checks.loaded import loaded, tied
from .checks.moved import moved, step_size
from .checks.overfit import NAME as BY_HEART
from .checks.overfit import overfit
from .checks.reopened import BEST_NAME as BEST_REOPENED
from .checks.reopened import NAME as REOPENED
from .checks.reopened import Saved, reopened
from .checks.resumed import NAME as RESUMED
from .checks.resumed import resumed
from .device import autocast
from .evaluating import evaluate, looking, loss_per_item
from .job import Job, unknown_metric
from .loop import NONFINITE, Loop, Observer
from .new_parts import parts_of
from .result import Controls
from .run_folder import BEST, MODEL
from .source import first_batch
from .tasks._load import is_users
from .tasks._task import Batch, Loss, is_higher_better

__all__ = ["at", "checks_after", "checks_before", "checks_during"]


def at(when: str, checks: Iterable[Check], tell: Observer) -> tuple[Check, ...]:
    """Return checks that know when they were made; tells how many are, for some take long."""
    made: list[Check] = []
    tell({"event": "checking", "when": when, "done": 0})
    for check in checks:
        made.append(replace(check, when=when))
        tell({"event": "checking", "when": when, "done": len(made)})
    return tuple(made)


def checks_before(job: Job, model: nn.Module, plan: Plan | None) -> Iterator[Check]:
    """Yield what is looked at before the first step."""
    task, settings, target = job.work.task, job.settings, job.target
    batch = first_batch(job.work.train, settings.seed)
    _try_out(job, model, batch)
    new = job.init.drawn if job.init is not None else frozenset(target.tensors)
    seed = settings.seed if job.init is None or job.init.seed is None else job.init.seed
    yield loaded(model, job.init, plan)
    yield tied(model, target.ties)
    yield drawn_fit(model, target, new, seed, parts=parts_of(job, plan))
    yield finite(model)
    yield varied(model, target, seed)
    yield first_loss(model, task, batch, settings=settings, drawn=job.init is None or bool(job.init.new))
    layers = layers_of(model, task, batch, settings=settings)
    yield scale(layers)
    yield dead_units(layers)
    yield independent(model, task, batch, settings=settings)


def _try_out(job: Job, model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError where model and task do not go together, or the task gives no such metric.

    Both may be the user's own code.
    """
    figures = {}
    try:
        if is_users(job.work.task):
            _check_loss(job, model, batch)
        loss_per_item(model, job.work.task, [batch], settings=job.settings)
        if job.work.dev is not None:
            figures = evaluate(model, job.work.task, [batch], settings=job.settings)
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the task {escape(job.settings.task)} cannot use this model: {type(error).__name__}: "
            f"{escape(str(error), 500)}.",
            hint="CKPT_DEBUG=1 shows where it happened.",
        ) from error
    if job.work.dev is not None and job.metric not in figures:
        raise unknown_metric(job.metric, figures)


def _check_loss(job: Job, model: nn.Module, batch: Batch) -> None:
    """Raise ConfigError for a loss that is no Loss, or is of nothing."""
    with looking(model), autocast(job.settings, job.device):
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


def checks_during(loop: Loop) -> Iterator[Check]:
    """Yield what was seen while training."""
    yield held(loop)
    yield diverged(loop)
    yield moved(loop)
    yield step_size(loop)
    yield gradient_norm(loop)
    yield nonfinite(loop)
    yield finite(loop.model, loop.average.tensors if loop.average is not None else None)
    yield figures_finite(loop.standing.figures, ("loss", loop.metric))
    yield blanks(loop.standing.figures)
    yield too_short(loop.standing)


def checks_after(loop: Loop, sets: Sequence[str], controls: Controls | None, *, overfitting: bool) -> Iterator[Check]:
    """Yield what is looked at after the last step; none of them can take what is known of the run with it."""
    job, standing = loop.job, loop.standing
    higher = is_higher_better(job.work.task, loop.metric)
    yield from _guarded(
        (BY_HEART,),
        lambda: [
            overfit(standing.figures, loop.metric, standing.step, higher=higher)
            if overfitting
            else Check(BY_HEART, NOT_RUN, "--overfit-one-batch asks for it")
        ],
    )
    yield from _guarded((RESUMED,), lambda: [resumed(job, step_s=standing.seconds / max(standing.step, 1))])
    yield knowledge(controls)
    yield from _guarded((REOPENED, BEST_REOPENED), lambda: _reopened(loop, sets, overfitting=overfitting))


def _guarded(names: Sequence[str], make: Callable[[], Iterable[Check]]) -> tuple[Check, ...]:
    """Make checks; where that fails they were not run, and why."""
    try:
        return tuple(make())
    except Exception as error:
        why = f"it failed: {type(error).__name__}: {escape(str(error), 300)}"
        return tuple(Check(name, NOT_RUN, why) for name in names)


def _reopened(loop: Loop, sets: Sequence[str], *, overfitting: bool) -> Iterator[Check]:
    """Yield whether what was saved last, and the best, are what they were."""
    found = [_last(loop), _best(loop)]
    saved = [one for one in found if isinstance(one, Saved)]
    made = {
        check.name: check for check in (reopened(loop.job, saved, sets=sets, overfitting=overfitting) if saved else ())
    }
    yield from (made[one.name] if isinstance(one, Saved) else one for one in found)


def _last(loop: Loop) -> Saved | Check:
    folder, step = loop.folder, loop.standing.step
    if folder is None or not folder.saved_steps:
        return Check(REOPENED, NOT_RUN, "nothing was saved")
    if folder.last_step() != step:
        return Check(REOPENED, NOT_RUN, f"step {step} was not saved, but step {folder.last_step()}")
    return Saved(REOPENED, folder.of("last", MODEL), _first_loss(loop))


def _best(loop: Loop) -> Saved | Check:
    """Return the best as it was evaluated; without ``dev`` it is the last, as the run would use it."""
    folder, standing = loop.folder, loop.standing
    if folder is None or not os.path.exists(folder.of(BEST)):
        return Check(BEST_REOPENED, NOT_RUN, "no model was the best")
    if loop.job.work.dev is not None:
        if standing.best_loss is None:
            return Check(BEST_REOPENED, NOT_RUN, "the task gives no loss over dev")
        return Saved(BEST_REOPENED, folder.of(BEST), standing.best_loss, dev=True)
    if standing.ended == NONFINITE:
        return Check(BEST_REOPENED, NOT_RUN, "it is of an earlier step")
    with loop.average.in_place() if loop.average is not None else nullcontext():
        return Saved(BEST_REOPENED, folder.of(BEST), _first_loss(loop))


def _first_loss(loop: Loop) -> float:
    work, settings = loop.job.work, loop.settings
    return loss_per_item(loop.model, work.task, [first_batch(work.train, settings.seed)], settings=settings)
