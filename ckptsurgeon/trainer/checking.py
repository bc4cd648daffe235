"""All checks, in their order: before the first step, during, and after the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from ..errors import CheckpointError, ConfigError
from ..plan import Plan
from ..text import escape
from .checks import NOT_RUN, Check
from .checks.activations import dead_units, layers_of, scale
from .checks.blanks import blanks, too_short
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
from .checks.reopened import NAME as REOPENED
from .checks.reopened import reopened
from .checks.resumed import resumed
from .evaluating import evaluate, loss_per_item
from .job import Job, unknown_metric
from .loop import Loop
from .new_parts import parts_of
from .result import Controls
from .run_folder import MODEL
from .source import first_batch
from .tasks._task import Batch, is_higher_better

__all__ = ["at", "checks_after", "checks_before", "checks_during"]


def at(when: str, checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return checks that know when they were made."""
    return tuple(replace(check, when=when) for check in checks)


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


def checks_during(loop: Loop) -> Iterator[Check]:
    """Yield what was seen while training."""
    yield held(loop)
    yield moved(loop)
    yield step_size(loop)
    yield gradient_norm(loop)
    yield nonfinite(loop)
    yield finite(loop.model, loop.average.tensors if loop.average is not None else None)
    yield figures_finite(loop.standing.figures, ("loss", loop.metric))
    yield blanks(loop.standing.figures)
    yield too_short(loop.standing)


def checks_after(loop: Loop, sets: Sequence[str], controls: Controls | None, *, overfitting: bool) -> Iterator[Check]:
    """Yield what is looked at after the last step."""
    job, standing = loop.job, loop.standing
    if overfitting:
        yield overfit(standing.figures, loop.metric, standing.step, higher=is_higher_better(job.work.task, loop.metric))
    else:
        yield Check(BY_HEART, NOT_RUN, "--overfit-one-batch asks for it")
    yield resumed(job, step_s=standing.seconds / max(standing.step, 1))
    yield knowledge(controls)
    if loop.folder is None or not loop.folder.holds_a_run:
        yield Check(REOPENED, NOT_RUN, "nothing was saved")
        return
    loss = loss_per_item(
        loop.model, job.work.task, [first_batch(job.work.train, job.settings.seed)], settings=job.settings
    )
    yield reopened(job, loop.folder.of("last", MODEL), loss=loss, sets=sets)
