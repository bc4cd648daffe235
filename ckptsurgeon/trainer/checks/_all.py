"""All checks, in their order: before the first step, during, and after the last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from torch import nn

from ...planning.plan.plan import Plan
from ...util.text import escape
from ..folder.run_folder import BEST, MODEL
from ..job.job import Job
from ..job.new_parts import parts_of
from ..job.smoke_test import try_out
from ..job.source import first_batch
from ..loop.evaluating import loss_per_item
from ..loop.loop import COLLAPSED, NONFINITE, Loop, Observer
from ..run.result import Controls
from ..tasks._task import is_higher_better
from ._check import NOT_RUN, Check
from .activations import dead_units, layers_of, scale
from .blanks import blanks, too_short
from .collapse import collapse
from .diverged import diverged
from .drawn import NAME as DRAWN
from .drawn import drawn_fit
from .finite import figures_finite, finite, varied
from .first_loss import first_loss
from .gradient import gradient_norm, nonfinite
from .held import held
from .independence import independent
from .knowledge import knowledge
from .loaded import loaded, tied
from .moved import moved, step_size
from .overfit import NAME as BY_HEART
from .overfit import overfit
from .reopened import BEST_NAME as BEST_REOPENED
from .reopened import NAME as REOPENED
from .reopened import Saved, reopened
from .resumed import NAME as RESUMED
from .resumed import resumed

IN_PARTS = "each process holds a part of the model (--strategy fsdp)"

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
    try_out(job, model, batch)
    new = job.init.drawn if job.init is not None else frozenset(target.tensors)
    seed = settings.seed if job.init is None or job.init.seed is None else job.init.seed
    yield loaded(model, job.init, plan)
    yield tied(model, target.ties)
    if job.is_sharded:
        yield Check(DRAWN, NOT_RUN, IN_PARTS)
    else:
        yield drawn_fit(model, target, new, seed, parts=parts_of(job, plan))
    yield finite(model)
    yield varied(model, target, seed)
    yield first_loss(model, task, batch, settings=settings, drawn=job.init is None or bool(job.init.new))
    layers = layers_of(model, task, batch, settings=settings)
    yield scale(layers)
    yield dead_units(layers)
    yield independent(model, task, batch, settings=settings)


def checks_during(loop: Loop) -> Iterator[Check]:
    """Yield what was seen while training."""
    yield held(loop)
    yield diverged(loop)
    yield moved(loop)
    yield step_size(loop)
    yield gradient_norm(loop)
    yield nonfinite(loop)
    yield collapse(loop)
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
    yield from _guarded((RESUMED,), lambda: [_resumed(loop)])
    yield knowledge(controls)
    yield from _guarded((REOPENED, BEST_REOPENED), lambda: _reopened(loop, sets, overfitting=overfitting))


def _resumed(loop: Loop) -> Check:
    if loop.spread.is_sharded:
        return Check(RESUMED, NOT_RUN, IN_PARTS)
    return resumed(loop.job, step_s=loop.standing.seconds / max(loop.standing.step, 1))


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
    if loop.spread.is_sharded:
        return Check(REOPENED, NOT_RUN, IN_PARTS)
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
    if loop.spread.is_sharded:
        return Check(BEST_REOPENED, NOT_RUN, IN_PARTS)
    if standing.ended in (NONFINITE, COLLAPSED):
        return Check(BEST_REOPENED, NOT_RUN, "it is of an earlier step")
    with loop.average.in_place() if loop.average is not None else nullcontext():
        return Saved(BEST_REOPENED, folder.of(BEST), _first_loss(loop))


def _first_loss(loop: Loop) -> float:
    work, settings = loop.job.work, loop.settings
    return loss_per_item(loop.model, work.task, [first_batch(work.train, settings.seed)], settings=settings)
