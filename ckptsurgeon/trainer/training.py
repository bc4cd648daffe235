"""``train``: from a configuration and initial weights to a model that was checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..api.types import Path
from ..errors import ConfigError
from ..text import escape
from .assembly import job_of, with_one_batch
from .checking import at, checks_after, checks_before, checks_during
from .checks._check import Check
from .controls import check_controls, run_controls
from .device import computing
from .job import Job
from .lineage import NAME as LINEAGE
from .lineage import check_unchanged, metadata_of, recorded
from .loop import NONFINITE, Loop, Observer
from .records import begin_records, checks_in, end_records
from .result import Controls, Trained
from .run_folder import RunFolder
from .start import Start, found_start
from .stopping import Stop, listening

__all__ = ["train"]


@dataclass(frozen=True)
class _Order:
    """What was asked for beside the job itself."""

    folder: RunFolder
    resume: bool
    sets: tuple[str, ...]
    seeds: int
    controls: bool
    overfit: bool
    tell: Observer


def train(
    config: Path | None = None,
    *,
    init: Path | None = None,
    run: Path = "run",
    resume: bool = False,
    sets: Sequence[str] = (),
    steps: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    check_only: bool = False,
    controls: bool = False,
    seeds: int = 3,
    overfit_one_batch: bool = False,
    preprocess_only: bool = False,
    observer: Observer | None = None,
) -> Trained:
    """Train the model that ``config`` describes from the weights in ``init``, and check what comes of it.

    Without ``config`` it is the one that the init's recipe names; without ``init`` too, the one
    ``*.init.safetensors`` of the working directory. ``sets`` are ``KEY=VALUE`` over the ``train:`` section. The
    folder ``run`` takes what the run leaves; ``resume`` goes on with the run in it, bit for bit on a CPU.
    ``check_only`` runs the checks that come before the first step, and writes nothing. ``controls`` trains the
    controls too, with ``seeds`` paired seeds. ``observer`` is given each row of the log as it is made, and what else
    happens: an ``event`` each.

    Raises ConfigError, PatternError, what ``load_into`` raises for an init that does not fit, and OutputError.
    """
    _check_modes(check_only, preprocess_only, resume, controls=controls, overfit=overfit_one_batch)
    sets = (*sets, *(f"{key}={value}" for key, value in (("steps", steps), ("seed", seed)) if value is not None))
    folder = RunFolder(os.fspath(run))
    writes = not (check_only or preprocess_only)
    start, sets = _start(folder, _text(config), _text(init), resume=resume, sets=sets, writes=writes)
    job = job_of(start.config, sets=sets, device=device, init=start.init)
    if controls:
        check_controls(job, seeds)
    order = _Order(folder, resume, sets, seeds, controls, overfit_one_batch, observer or (lambda row: None))
    if preprocess_only:  # what it computes of each split is said with what there is
        job = replace(job, work=replace(job.work, notes=()))
    order.tell({"event": "notes", "notes": _notes(job, start)})
    with computing(job.settings):
        if preprocess_only:
            return _prepared(job, start)
        if overfit_one_batch:
            job = with_one_batch(job)
        if check_only:
            return _checked(job, start)
        return _trained(job, start, order)


def _check_modes(check_only: bool, preprocess_only: bool, resume: bool, *, controls: bool, overfit: bool) -> None:
    """Raise ConfigError for what cannot be asked together."""
    alone = [flag for flag, given in (("--check-only", check_only), ("--preprocess-only", preprocess_only)) if given]
    others = [("--resume", resume), ("--controls", controls), ("--overfit-one-batch", overfit)]
    more = [*alone[1:], *(flag for flag, given in others if given)]
    if alone and more:
        raise ConfigError(f"{alone[0]} and {more[0]} contradict each other.", hint="Leave one out.")
    if resume and controls:
        raise ConfigError("--controls starts from an init, --resume does not.", hint="Leave one out.")


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _start(
    folder: RunFolder, config: str | None, init: str | None, *, resume: bool, sets: Sequence[str], writes: bool
) -> tuple[Start, tuple[str, ...]]:
    """Return what to start from: anew, or as a run in a folder was started. Init is not resume, and never both."""
    if not resume:
        if folder.holds_a_run and writes:
            raise ConfigError(
                f"{escape(folder.path)} holds a run, at step {folder.last_step()}.",
                hint="Go on with it by --resume, or start another with --run.",
            )
        return found_start(config, init), tuple(sets)
    if init is not None:
        raise ConfigError(
            "--init and --resume contradict each other: a run is initialised once, and its folder says from what.",
            hint="Leave one out.",
        )
    known = recorded(folder, folder.last_step())
    if config is None:
        config = os.path.relpath(os.path.join(folder.path, known["config"]))
    begun = known["init"]["path"] if known["init"] is not None else None
    from_ = os.path.relpath(os.path.join(folder.path, begun)) if begun is not None else None
    return Start(config, from_=from_), (*known["sets"], *sets)


def _prepared(job: Job, start: Start) -> Trained:
    if job.work.prepare is None:
        raise ConfigError(f"the task {escape(job.settings.task)} computes nothing beforehand.")
    return _result(job, start, checks=(), ended="prepared", notes=tuple(job.work.prepare()))


def _checked(job: Job, start: Start) -> Trained:
    model, plan = job.model()
    return _result(job, start, checks=at("before", checks_before(job, model, plan)), ended="")


def _trained(job: Job, start: Start, order: _Order) -> Trained:
    """Train, or go on; then check, write down and tell what came of it."""
    if order.resume:
        loop, before = _resumed(job, order), checks_in(order.folder)
    else:
        model, plan = job.model()
        before = at("before", checks_before(job, model, plan))
        order.tell({"event": "checks", "checks": before})
        loop = Loop(job, model, folder=order.folder, observer=order.tell)
        begin_records(order.folder, job, plan, sets=order.sets, checks=before)
    loop.lineage = metadata_of(order.folder.read_json(LINEAGE))
    order.tell({"event": "begin", "step": loop.standing.step, "steps": job.settings.steps, "folder": order.folder.path})
    with listening() as stop:
        ended = loop.run(stop=stop, tensorboard=True)
    if job.work.dev is None and ended != NONFINITE and loop.standing.step:
        loop.save_best()
    checks, controls = before, None
    if not stop.name:
        checks = (*before, *at("during", checks_during(loop)))
        controls = _controls(job, order)
        checks = (*checks, *at("after", checks_after(loop, order.sets, controls, overfitting=order.overfit)))
    return _finish(job, start, loop, order, stop=stop, checks=checks, controls=controls)


def _resumed(job: Job, order: _Order) -> Loop:
    """Return the run in a folder as it was saved."""
    check_unchanged(job, recorded(order.folder, order.folder.last_step()), order.folder)
    loop = Loop(job, job.empty_model().to(job.device), folder=order.folder, observer=order.tell)
    loop.restore(*order.folder.load())
    return loop


def _controls(job: Job, order: _Order) -> Controls | None:
    if not order.controls:
        return None
    return run_controls(
        job,
        seeds=order.seeds,
        told=lambda told: order.tell({"event": "control", **asdict(told)}),
    )


def _finish(
    job: Job, start: Start, loop: Loop, order: _Order, *, stop: Stop, checks: tuple[Check, ...],
    controls: Controls | None,
) -> Trained:  # fmt: skip
    standing = loop.standing
    result = _result(job, start, checks=checks, ended=standing.ended)
    result = replace(
        result, run=order.folder.path, step=standing.step, metric=loop.metric, best=standing.best,
        best_step=standing.best_step, figures=standing.figures, first_loss=standing.first_loss,
        last_loss=standing.last_loss, skipped=standing.skipped, elapsed_s=standing.seconds, controls=controls,
        exit_code=stop.exit_code or result.exit_code,
    )  # fmt: skip
    end_records(order.folder, result, curves=not stop.name)
    return result


def _notes(job: Job, start: Start) -> tuple[str, ...]:
    """Return what is worth saying before the first step."""
    return (*start.notes, *job.target.notes, *job.work.notes)


def _result(job: Job, start: Start, *, checks: tuple[Check, ...], ended: str, notes: tuple[str, ...] = ()) -> Trained:
    made = Trained(
        config=start.config,
        run=None,
        init=start.from_,
        task=job.settings.task,
        device=job.device.type,
        step=0,
        steps=job.settings.steps,
        ended=ended,
        checks=checks,
        metric=job.settings.metric or job.work.task.metric,
        notes=(*_notes(job, start), *notes),
    )
    return made if made.ok else replace(made, exit_code=1)
