"""One run, from the checks before the first step to the figures on the test split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ...api.transplant.load_into import load_into
from ..checks.check import NOT_RUN, Check
from ..checks.suite import checks_after, checks_before, checks_during, collect_checks
from ..evaluation import evaluate
from ..folder.run_folder import BEST, RunFolder
from ..folder.run_lock import RunLock
from ..job.assembly import fill_caches
from ..job.job import Job
from ..log import LOG_FILE as LOG
from ..log import TrainingLog, read_log
from ..loop import DONE, PATIENCE, Observer, TrainingLoop
from ..parallel.ranks import describe_lost_rank
from ..parallel.sharded_model import shard_task, single_process_job
from ..system.signals import StopSignal, catch_stop_signals
from ..tasks._task import Batch
from .controls import run_controls
from .lineage import LINEAGE, metadata_of
from .records import read_start_checks, write_end_records, write_start_records
from .result import Controls, Trained
from .start import RunStart, check_free
from .train_request import TrainRequest, rank_mismatch

__all__ = [
    "UNTESTED",
    "RunOptions",
    "TestFigures",
    "evaluate_test_split",
    "has_test_split",
    "lost_notes",
    "make_result",
    "run_job",
    "start_notes",
]

UNDONE = "unchecked"
"""How a run has ended while what comes after its last step is still to come."""
UNCHECKED = Check("checks after the last step", NOT_RUN, "not made yet; --resume makes them", "after")
UNCONTROLLED = Check("controls", NOT_RUN, "not run yet; --resume --controls runs them", "after")


@dataclass(frozen=True)
class RunOptions:
    """What was asked for beside the job itself."""

    folder: RunFolder
    lock: RunLock
    resume: bool
    sets: tuple[str, ...]
    seeds: int
    controls: bool
    overfit: bool
    tell: Observer
    began: float
    """When that was, in seconds of time.perf_counter()."""
    go: Callable[[TrainRequest], None] = lambda going: None
    """Tells other processes to train, too."""


def run_job(job: Job, start: RunStart, order: RunOptions) -> Trained:
    """Train, or go on; then check, write down and tell what came of it."""
    early = not job.is_sharded  # what is wrong is said before anything is computed; parts are made together
    if order.resume:
        loop = _resumed(job, order) if early else None
        fill_caches(job, order.tell)
        _call(job, start, order)
        loop, before = loop or _resumed(job, order), read_start_checks(order.folder)
    else:
        made = job.spread() if early else None
        fill_caches(job, order.tell)
        _call(job, start, order)
        spread, plan = made or job.spread()
        job = shard_task(job, spread)
        before = collect_checks("before", checks_before(job, spread.model, plan), order.tell)
        order.tell({"event": "checks", "checks": before})
        loop = TrainingLoop(job, spread, folder=order.folder, observer=order.tell)
        _claim(order)
        write_start_records(order.folder, job, plan, sets=order.sets, checks=before, overfitting=order.overfit)
    before_s = loop.standing.seconds
    notes = _already(loop) if order.resume else ()
    if notes:
        order.tell({"event": "notes", "notes": notes})
    loop.lineage = metadata_of(order.folder.read_json(LINEAGE))
    order.tell({"event": "begin", "step": loop.standing.step, "steps": job.settings.steps, "folder": order.folder.path})
    with catch_stop_signals() as stop:
        loop.run(stop=stop, tensorboard=True)
    start = replace(start, notes=(*start.notes, *notes, *lost_notes(loop.lost, order.folder)))
    finish = partial(_finish, job, start, loop, order, stop=stop, before_s=before_s)
    if (loop.stopped if job.ranks.size > 1 else stop.name) or loop.lost:
        return finish(checks=before)
    checks = (*before, *collect_checks("during", checks_during(loop), order.tell))
    job = loop.job = single_process_job(job)  # the others are done
    to_come = (UNCHECKED, UNCONTROLLED) if order.controls else (UNCHECKED,)
    finish(checks=(*checks, *to_come), to_come=True)  # what comes now takes long, and may be stopped
    test = evaluate_test_split(loop, order.tell) if has_test_split(loop) else None
    controls = _controls(job, order)
    after = checks_after(loop, order.sets, controls, overfitting=order.overfit)
    return finish(checks=(*checks, *collect_checks("after", after, order.tell)), controls=controls, test=test)


def _call(job: Job, start: RunStart, order: RunOptions) -> None:
    """Let the other processes, if there are such, train what this one does; raises ConfigError where they cannot."""
    init = start.init.path if start.init is not None else None
    order.go(TrainRequest(start.config, order.sets, init, order.overfit, order.folder.path, order.resume, job.strategy))
    different = rank_mismatch(job)
    if different is not None:
        raise different


def lost_notes(lost: Mapping[int, str], folder: RunFolder) -> tuple[str, ...]:
    """Return what is to be said of processes that ended before the run did."""
    saved = folder.saved_steps
    goes_on = f"step {saved[-1]} is saved, and --resume goes on" if saved else "nothing was saved yet"
    return tuple(f"{describe_lost_rank(rank, word)}; {goes_on}" for rank, word in lost.items())


def _already(loop: TrainingLoop) -> tuple[str, ...]:
    """Return what is to be said of a run that is gone on with and was done."""
    step, steps = loop.standing.step, loop.settings.steps
    if step < steps:
        return ()
    return (f"the run was done, at step {step}/{steps}: nothing is left to train, it is only checked again",)


def _claim(order: RunOptions) -> None:
    """Make the folder this run's own: another one may have begun there since it was looked at."""
    order.folder.create()
    order.lock.take()
    if order.folder.holds_a_run:
        check_free(order.folder)
    order.folder.tidy()


def _resumed(job: Job, order: RunOptions) -> TrainingLoop:
    """Return the run in a folder as it was saved."""
    order.folder.tidy()
    spread = job.empty_spread()
    loop = TrainingLoop(shard_task(job, spread), spread, folder=order.folder, observer=order.tell)
    loop.restore(*order.folder.load())
    return loop


def _controls(job: Job, order: RunOptions) -> Controls | None:
    if not order.controls:
        return None
    return run_controls(
        job,
        seeds=order.seeds,
        told=lambda told: order.tell({"event": "control", **asdict(told)}),
    )


def _finish(
    job: Job, start: RunStart, loop: TrainingLoop, order: RunOptions, *, stop: StopSignal, checks: tuple[Check, ...],
    controls: Controls | None = None, test: TestFigures | None = None, to_come: bool = False, before_s: float,
) -> Trained:  # fmt: skip
    standing = loop.standing
    notes = (UNTESTED,) if not to_come and has_test_split(loop) and test is None else ()
    ended = UNDONE if to_come and standing.ended in (DONE, PATIENCE) else standing.ended
    result = make_result(job, start, checks=checks, ended=ended, notes=notes)
    result = replace(
        result, run=order.folder.path, step=standing.step, metric=loop.metric, best=standing.best,
        best_step=standing.best_step, figures=standing.figures, first_loss=standing.first_loss,
        last_loss=standing.last_loss, skipped=standing.skipped, controls=controls,
        elapsed_s=before_s + time.perf_counter() - order.began, train_s=standing.seconds,
        test=test.figures if test is not None else {}, test_clips=test.clips if test is not None else 0,
        exit_code=1 if loop.lost else stop.exit_code or result.exit_code,
    )  # fmt: skip
    write_end_records(order.folder, result, curves=not to_come and not stop.name)
    return result


def start_notes(job: Job, start: RunStart) -> tuple[str, ...]:
    """Return what is worth saying before the first step."""
    return (*start.notes, *job.target.notes, *job.notes)


def make_result(
    job: Job, start: RunStart, *, checks: tuple[Check, ...], ended: str, notes: tuple[str, ...] = ()
) -> Trained:
    """Return what is known of a job whether it trained or not; a check that failed makes the exit status 1."""
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


UNTESTED = "test was not evaluated: no evaluation on dev gave a number, so that no model is the best"


@dataclass(frozen=True)
class TestFigures:
    """``figures`` over so many ``clips``, of the weights after ``step`` steps."""

    step: int
    figures: Mapping[str, float]
    clips: int

    def row(self) -> dict[str, Any]:
        """Return it as a line of the log."""
        return {"step": self.step, "test": dict(self.figures), "test_clips": self.clips}


def has_test_split(loop: TrainingLoop) -> bool:
    """Whether a run has a test split, and came to its end: one that was stopped will go on."""
    return loop.job.test is not None and loop.standing.ended in (DONE, PATIENCE)


def evaluate_test_split(loop: TrainingLoop, tell: Callable[[Mapping[str, Any]], None]) -> TestFigures | None:
    """Evaluate the best weights of a run, or find in its log what they were like; None where none are the best."""
    standing, job, folder = loop.standing, loop.job, loop.folder
    assert job.test is not None
    assert folder is not None
    if job.dev is not None and standing.best is None:
        return None
    step = standing.best_step if job.dev is not None else standing.step
    for row in read_log(folder.of(LOG)):
        if row["step"] == step and "test" in row:  # of a run that had ended, and was resumed
            return TestFigures(step, row["test"], row["test_clips"])
    tell({"event": "test", "step": step})
    found = _evaluated(loop, folder.of(BEST), step)
    log = TrainingLog(folder, standing.step, tensorboard=True)
    try:
        log.write(found.row())
    finally:
        log.close()
    tell(found.row())
    return found


def _evaluated(loop: TrainingLoop, weights: str, step: int) -> TestFigures:
    """Evaluate what a file holds, in a model of its own: the run's holds its last weights."""
    job, clips = loop.job, 0

    def counted(batches: Iterable[Batch]) -> Iterator[Batch]:
        nonlocal clips
        for batch in batches:
            clips += len(batch.names)
            yield batch

    assert job.test is not None
    model = job.empty_model()
    load_into(model, weights, strict=True, on_missing="error")
    figures = evaluate(
        model.to(job.device), job.task, counted(job.test.read(0, 0)), settings=job.settings
    )  # fmt: skip
    return TestFigures(step, figures, clips)
