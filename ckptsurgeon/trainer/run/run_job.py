"""Runs a job: checks, training, records, the test split, controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

from ...errors import OutputError, SourceError
from ...util.text import escape
from ..checks.check import FAIL, NOT_RUN, Check
from ..checks.suite import checks_after, checks_before, checks_during, collect_checks
from ..folder.checkpoint_files import tidy
from ..folder.run_folder import RunFolder, RunLock
from ..job.assembly import fill_caches
from ..job.job import Job
from ..log import Observer
from ..loop import TrainingLoop
from ..parallel.lost_ranks import describe_lost_rank
from ..parallel.sharded_task import shard_task, single_process_job
from ..state.training_state import DONE, FAILED, PATIENCE
from ..system.signals import StopSignal, catch_stop_signals
from .controls import run_controls
from .final_evaluation import FinalFigures, evaluate_test_split
from .records import LINEAGE, metadata_of, write_end_records, write_start_records
from .report import read_start_checks
from .result import Controls, Trained
from .resuming import record_steps
from .run_loggers import RunLoggers
from .start import RunStart, check_free
from .train_request import TrainRequest, rank_mismatch

__all__ = [
    "UNTESTED",
    "RunOptions",
    "has_test_split",
    "lost_notes",
    "make_result",
    "run_job",
    "start_notes",
]

UNDONE = "unchecked"
"""The value of ``ended`` in a result if the last step is done, but the checks or controls after it are not."""
UNCHECKED = Check("checks after the last step", NOT_RUN, "not run yet; --resume runs them", "after")
UNCONTROLLED = Check("controls", NOT_RUN, "not run yet; --resume --controls runs them", "after")


@dataclass(frozen=True)
class RunOptions:
    """The options of a call of ``train`` that are not part of the job, such as the folder of the run."""

    folder: RunFolder
    lock: RunLock
    resume: bool
    sets: tuple[str, ...]
    seeds: int
    controls: bool
    overfit: bool
    keep_going: bool
    observer: Observer
    began: float
    """The time at which ``train`` was called, by time.perf_counter()."""
    send_request: Callable[[TrainRequest], None] | None = None
    """A function that tells the other ranks to train; None if there is only one rank."""


def run_job(job: Job, start: RunStart, options: RunOptions) -> Trained:
    """Train a job, or continue its saved run; run the checks, write the records, and return the result."""
    loggers = RunLoggers(options.folder, options.observer)
    options = replace(options, observer=loggers.observe)
    # A model without shards is built first, to fail before the slow part. A sharded model needs the other ranks.
    builds_first = not job.is_sharded
    if options.resume:
        loop = _saved_loop(job, options) if builds_first else None
        fill_caches(job, options.observer)
        if options.send_request is not None:
            _request_training(job, start, options, options.send_request)
        loop, before = loop or _saved_loop(job, options), read_start_checks(options.folder)
        record_steps(job, options.folder.read_json(LINEAGE), options.folder, options.sets)
    else:
        built = job.parallel_model() if builds_first else None
        fill_caches(job, options.observer)
        if options.send_request is not None:
            _request_training(job, start, options, options.send_request)
        model, plan = built or job.parallel_model()
        if job.is_sharded:
            job = shard_task(job, model)
        before = collect_checks("before", checks_before(job, model.module, plan), options.observer)
        options.observer({"event": "checks", "checks": before})
        if not options.keep_going and any(check.status == FAIL for check in before):
            job.ranks.report_exit("a check failed before the first step")  # the other ranks wait for the first step
            return make_result(job, start, checks=before, ended=FAILED)
        loop = TrainingLoop(job, model, folder=options.folder, observer=options.observer)
        _lock_folder(options)
        write_start_records(options.folder, job, plan, sets=options.sets, checks=before, overfitting=options.overfit)
    before_s = loop.state.progress.seconds
    notes = _already_done(loop) if options.resume else ()
    if notes:
        options.observer({"event": "notes", "notes": notes})
    loop.checkpoints.lineage = metadata_of(options.folder.read_json(LINEAGE))
    options.observer(
        {"event": "begin", "step": loop.state.progress.step, "steps": job.settings.steps, "folder": options.folder.path}
    )
    with loggers.logging(job, start.from_, loop.state.progress.step):
        start = replace(start, notes=(*start.notes, *notes))
        result = _train_and_check(job, start, loop, options, before, before_s=before_s, loggers=loggers)
        loggers.finish(result)
    return result


def _train_and_check(
    job: Job, start: RunStart, loop: TrainingLoop, options: RunOptions, before: tuple[Check, ...], *,
    before_s: float, loggers: RunLoggers,
) -> Trained:  # fmt: skip
    """Train, then check the trained model and write the records; return the result, even if the run was stopped.

    ``before`` are the results of the checks before the first step. ``before_s`` is the training time of the run before
    it was resumed, in seconds.
    """
    with catch_stop_signals() as stop, _hint_at_saved(options.folder):
        loop.run(stop=stop)
    notes = (*loggers.notes, *lost_notes(loop.state.lost_ranks, options.folder))
    start = replace(start, notes=(*start.notes, *notes))
    finish = partial(_finish, job, start, loop, options, stop=stop, before_s=before_s)
    if (loop.stopped if job.ranks.size > 1 else stop.name) or loop.state.lost_ranks:
        return finish(checks=before)
    checks = (*before, *collect_checks("during", checks_during(loop), options.observer))
    if job.ranks.size > 1:  # the other ranks have ended
        job = loop.job = single_process_job(job)
    missing = (UNCHECKED, UNCONTROLLED) if options.controls else (UNCHECKED,)
    finish(checks=(*checks, *missing), is_preliminary=True)  # the rest takes long, and may be interrupted
    given = (start.config, *(word for one in options.sets for word in ("--set", one)))
    test = evaluate_test_split(loop, options.observer, given) if has_test_split(loop) else None
    controls = _controls(job, options) if options.controls else None
    after = checks_after(loop, options.sets, controls, overfitting=options.overfit)
    return finish(checks=(*checks, *collect_checks("after", after, options.observer)), controls=controls, test=test)


def _request_training(job: Job, start: RunStart, options: RunOptions, send: Callable[[TrainRequest], None]) -> None:
    """Ask the other ranks to train the same job; raises ConfigError if they read another model, settings or data."""
    init = start.init.path if start.init is not None else None
    send(
        TrainRequest(
            start.config, options.sets, init, options.overfit, options.folder.path, options.resume, job.strategy
        )
    )
    different = rank_mismatch(job)
    if different is not None:
        raise different


@contextmanager
def _hint_at_saved(folder: RunFolder) -> Iterator[None]:
    """If the block raises an error about a sound or the disk, make its hint say how the run can continue."""
    try:
        yield
    except (SourceError, OutputError) as error:
        saved, goes_on = folder.saved_steps, f"ckpt train --run {escape(folder.path)} --resume goes on"
        if saved and isinstance(error, OutputError):
            error.add_hint(f"Step {saved[-1]} is saved, and {goes_on}.")
        elif saved:
            error.hint = (
                f"Replace it by a valid sound of the same length: step {saved[-1]} is saved, and {goes_on} with the "
                "same clips. To train without this clip, start another run."
            )
        raise


def lost_notes(lost: Mapping[int, str], folder: RunFolder) -> tuple[str, ...]:
    """Return a note on each rank that ended before the run was done; ``lost`` maps the rank to its reason, or ''."""
    saved = folder.saved_steps
    goes_on = f"step {saved[-1]} is saved, and --resume goes on from it" if saved else "nothing was saved yet"
    return tuple(f"{describe_lost_rank(rank, reason)}; {goes_on}" for rank, reason in lost.items())


def _already_done(loop: TrainingLoop) -> tuple[str, ...]:
    """Return a note if a resumed run has already done all of its steps; else ()."""
    step, steps = loop.state.progress.step, loop.settings.steps
    if step < steps:
        return ()
    return (f"this run has already done all {steps} steps: the model is not trained further, only checked again",)


def _lock_folder(options: RunOptions) -> None:
    """Create and lock the folder of this run; raises an error if another run has begun there in the meantime."""
    options.folder.create()
    options.lock.take()
    if options.folder.holds_a_run:
        check_free(options.folder)
    tidy(options.folder.path)


def _saved_loop(job: Job, options: RunOptions) -> TrainingLoop:
    """Return the training loop of the run in the folder, with the state of its newest checkpoint."""
    tidy(options.folder.path)
    model = job.empty_parallel_model()
    job = shard_task(job, model) if job.is_sharded else job
    loop = TrainingLoop(job, model, folder=options.folder, observer=options.observer)
    loop.state.restore(*options.folder.load())
    return loop


def _controls(job: Job, options: RunOptions) -> Controls:
    return run_controls(
        job,
        seeds=options.seeds,
        observer=lambda run: options.observer({"event": "control", **asdict(run)}),
    )


def _finish(
    job: Job, start: RunStart, loop: TrainingLoop, options: RunOptions, *, stop: StopSignal, checks: tuple[Check, ...],
    controls: Controls | None = None, test: FinalFigures | None = None, is_preliminary: bool = False, before_s: float,
) -> Trained:  # fmt: skip
    progress = loop.state.progress
    notes = (UNTESTED,) if not is_preliminary and has_test_split(loop) and test is None else ()
    ended = UNDONE if is_preliminary and progress.ended in (DONE, PATIENCE) else progress.ended
    result = make_result(job, start, checks=checks, ended=ended, notes=notes)
    result = replace(
        result, run=options.folder.path, step=progress.step, metric=loop.job.metric, best=progress.best,
        best_step=progress.best_step, figures=progress.figures, first_loss=progress.first_loss,
        last_loss=progress.last_loss, skipped=progress.skipped, controls=controls,
        elapsed_s=before_s + time.perf_counter() - options.began, train_s=progress.seconds,
        test=test.figures if test is not None else {}, test_clips=test.clips if test is not None else 0,
        exit_code=1 if loop.state.lost_ranks else stop.exit_code or result.exit_code,
    )  # fmt: skip
    write_end_records(options.folder, result, curves=not is_preliminary and not stop.name)
    return result


def start_notes(job: Job, start: RunStart) -> tuple[str, ...]:
    """Return the notes for the user before the first step: about the start, the model and the data."""
    return (*start.notes, *job.target.notes, *job.notes)


def make_result(
    job: Job, start: RunStart, *, checks: tuple[Check, ...], ended: str, notes: tuple[str, ...] = ()
) -> Trained:
    """Return the result of a job that took no step; ``ended`` is the reason why it ended.

    The exit status in the result is 1 if a check failed.
    """
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
        metric=job.settings.metric or job.task.metric,
        notes=(*start_notes(job, start), *notes),
    )
    return made if made.ok else replace(made, exit_code=1)


UNTESTED = "test was not evaluated: the metric was NaN in all evaluations on dev, so there is no best model"


def has_test_split(loop: TrainingLoop) -> bool:
    """Return whether the split ``test`` must be evaluated: the run has one, and no signal or fault ended the run."""
    return loop.job.test is not None and loop.state.progress.ended in (DONE, PATIENCE)
