"""``train``: from a configuration and initial weights to a trained and checked model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from ...api.inputs.argument_types import Path, checked
from ...errors import ConfigError
from ...util.text import count, escape
from ..checks.suite import checks_before, collect_checks
from ..data.loader import Batches
from ..data.sound import ARRAY
from ..evaluation import evaluate_shared
from ..folder.run_folder import RunFolder, RunLock
from ..job.assembly import build_job, fill_caches, progress_observer, with_one_batch
from ..job.job import Job
from ..log import Observer
from ..parallel.process_group import process_group, read_torchrun_env
from ..parallel.ranks import SINGLE_PROCESS, TORCHRUN, ParallelModel, TorchrunEnv
from ..parallel.sharded_task import single_process_job
from ..state.source_moments import check_moments
from ..system.device import choose_device, explain_compile_errors, explain_out_of_memory, torch_settings
from .controls import check_controls
from .records import TEXTS_DIGEST
from .result import Trained
from .resuming import check_overfitting, check_unchanged, resume_start
from .run_job import RunOptions, make_result, run_job, start_notes
from .run_loggers import check_loggers
from .start import RunStart, check_free, check_inputs_are_safe, find_start, other_files_note
from .train_request import request_sender
from .worker_ranks import run_worker

__all__ = ["OVERFIT", "RUN", "train"]

STRATEGIES = ("ddp", "fsdp")
SPLITS = ("dev", "test")
"""The splits that can be evaluated without training."""

RUN, OVERFIT = "run", "run-overfit"
"""Default folders of a run. --overfit-one-batch has a separate folder, so that it does not block a real run."""


@checked
def train(
    config: Path | None = None,
    *,
    init: Path | None = None,
    run: Path | None = None,
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
    keep_going: bool = False,
    evaluate: str | None = None,
    strategy: str = "ddp",
    observer: Observer | None = None,
) -> Trained:
    """Train the model that ``config`` describes from the weights in ``init``, and check the result.

    Without ``config``, the configuration is the one that the recipe of the init refers to. Without ``config`` and
    ``init``, the init is the only ``*.init.safetensors`` in the working directory. With ``config`` alone, all weights
    are newly initialised. ``sets`` are ``KEY=VALUE`` strings that replace values of the ``train:`` section; ``steps``
    and ``seed`` replace the values of these names. All output goes to the folder ``run`` (default: ``run``, or
    ``run-overfit`` with ``overfit_one_batch``); ``resume`` continues the run in it, bit for bit on a CPU.
    ``check_only`` runs the checks before the first step, and writes nothing. ``overfit_one_batch`` trains on a single
    batch, and ``preprocess_only`` prepares the data and ends. ``evaluate`` ("dev" or "test") only computes the metrics
    of the given weights on this split, and writes nothing. ``controls`` also trains the model from scratch and from
    permuted weights, each with ``seeds`` seeds, even if the resumed run is finished. If a check fails before the first
    step, the run ends there, unless ``keep_going`` is true. ``observer`` is called with each row of the log, and with a
    dict that has the key ``event`` for everything else.

    Every process that torchrun started calls this with the same arguments: each process trains on its share of every
    batch, and rank 0 checks, writes and calls ``observer``. ``strategy`` is ``ddp``, with the whole model in each
    process, or ``fsdp``, with a shard of the model in each process; each process then reads only its shard of the init.

    Raises ConfigError, PatternError and OutputError, and the errors of ``load_into`` for an init that does not fit.
    """
    began = time.perf_counter()
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy {escape(strategy)!r} is unknown.", hint=f"Use {' or '.join(STRATEGIES)}.")
    mode = _Mode(check_only, preprocess_only, evaluate, resume=resume, controls=controls, overfits=overfit_one_batch)
    mode.check()
    sets = _all_sets(sets, steps, seed)
    folder = RunFolder(os.fspath(run) if run is not None else OVERFIT if overfit_one_batch else RUN)
    env = read_torchrun_env(os.environ) if any(name in os.environ for name in TORCHRUN) else TorchrunEnv()
    torch_device = choose_device(device, env.local_rank if env.world_size > 1 else None)
    with ExitStack() as stack:
        ranks = stack.enter_context(process_group(env, torch_device)) if env.world_size > 1 else SINGLE_PROCESS
        if not ranks.is_main:
            return run_worker(ranks, torch_device)
        stack.enter_context(ranks.detect_lost())
        send_request = stack.enter_context(request_sender(ranks)) if ranks.size > 1 else None
        lock = stack.enter_context(RunLock(folder.path))
        start, sets = _start(lock, folder, mode, _text(config), _text(init), sets)
        job = build_job(
            start.config,
            sets=sets,
            device=torch_device,
            init=start.init,
            cached=not (check_only or evaluate),
            ranks=ranks,
            strategy=strategy,
        )
        start = _checked_start(start, job, mode, folder)
        overfits = overfit_one_batch
        if start.known is not None:
            overfits = check_overfitting(start.known, overfit_one_batch, folder)
        if controls:
            _check_whole(job, "--controls")
            check_controls(job, seeds)
        options = RunOptions(
            folder, lock, resume, sets, seeds, controls, overfits, keep_going, observer or (lambda row: None),
            began, send_request,
        )  # fmt: skip
        if preprocess_only:  # its result describes the splits; no weights are drawn
            job = replace(job, notes=())
            start = replace(start, notes=start.notes if start.init is not None else ())
        if strategy == "fsdp" and ranks.size == 1:
            start = replace(start, notes=(*start.notes, "--strategy fsdp has no effect: there is only one process"))
        options.observer({"event": "notes", "notes": start_notes(job, start)})
        return _run(job, start, options, mode)


@dataclass(frozen=True)
class _Mode:
    """The modes of a call of ``train``. Each of the first three fields replaces training by something else."""

    check_only: bool
    preprocess_only: bool
    evaluate: str | None
    resume: bool
    controls: bool
    overfits: bool

    @property
    def writes(self) -> bool:
        """Whether the call writes to the folder of the run."""
        return not (self.check_only or self.preprocess_only or self.evaluate)

    def check(self) -> None:
        """Raise ConfigError for an unknown split, or if two modes contradict each other.

        Each mode that replaces training excludes the other two such modes, and the training options among the fields.
        """
        if self.evaluate is not None and self.evaluate not in SPLITS:
            raise ConfigError(
                f"there is no split {escape(self.evaluate)} to evaluate.", hint=f"Use {' or '.join(SPLITS)}."
            )
        modes = (
            ("--check-only", self.check_only),
            ("--preprocess-only", self.preprocess_only),
            ("--evaluate", self.evaluate),
        )
        alone = [flag for flag, given in modes if given]
        others = [("--resume", self.resume), ("--controls", self.controls), ("--overfit-one-batch", self.overfits)]
        more = [*alone[1:], *(flag for flag, given in others if given)]
        if alone and more:
            raise ConfigError(f"{alone[0]} and {more[0]} contradict each other.", hint="Leave one of the two out.")


def _all_sets(sets: Sequence[str], steps: int | None, seed: int | None) -> tuple[str, ...]:
    """Return the ``KEY=VALUE`` strings of the user, and strings for the arguments ``steps`` and ``seed``."""
    return (*sets, *(f"{key}={value}" for key, value in (("steps", steps), ("seed", seed)) if value is not None))


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _start(
    lock: RunLock, folder: RunFolder, mode: _Mode, config: str | None, init: str | None, sets: tuple[str, ...]
) -> tuple[RunStart, tuple[str, ...]]:
    """Return the starting point of the run, and the ``KEY=VALUE`` strings that replace its settings.

    If the run is resumed, both are read from the folder, and ``sets`` are added to the strings. Raises ConfigError if
    ``init`` is given for a resumed run.
    """
    if not mode.resume:
        if mode.writes:
            lock.check()
            check_free(folder)
        found = find_start(config, init)
        return (replace(found, notes=(*found.notes, *other_files_note(folder))) if mode.writes else found), sets
    if init is not None:
        raise ConfigError(
            "--init and --resume contradict each other: a run is initialised only once, when it starts.",
            hint="Leave out --init to go on with the run, or --resume to start a new one.",
        )
    return resume_start(lock, folder, config, sets=sets, controls=mode.controls)


def _checked_start(start: RunStart, job: Job, mode: _Mode, folder: RunFolder) -> RunStart:
    """Return the starting point ``start`` with further notes; raises an error if the job cannot begin there."""
    check_loggers(job.settings.loggers)
    if start.known is None and job.settings.keep_optimizer:
        _check_whole(job, "train.keep_optimizer")
        said = check_moments(job.init, job.settings.optimizer, list(job.target.tensors))
        start = replace(start, notes=(*start.notes, said))
    if start.known is not None:
        return replace(start, notes=(*start.notes, *check_unchanged(job, start.known, folder)))
    if mode.writes:
        check_inputs_are_safe(folder, job)
    return start


def _check_whole(job: Job, option: str) -> None:
    """Raise ConfigError for ``option``, which needs the whole model in one process, if the model is sharded."""
    if job.is_sharded:
        raise ConfigError(f"{option} needs the whole model in one process.", hint="Use --strategy ddp.")


def _run(job: Job, start: RunStart, options: RunOptions, mode: _Mode) -> Trained:
    """Train the job, or do something else that ``mode`` asks for; return the result."""
    with (
        torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary),
        closing(job),
        explain_out_of_memory(job.settings, evaluates=bool(mode.evaluate)),
        explain_compile_errors(job.settings),
    ):
        if mode.preprocess_only:
            return _prepare_only(job, start, options)
        if mode.evaluate:
            return _evaluate_only(job, start, mode.evaluate)
        if options.overfit:
            fill_caches(job, options.observer, only_train=True)
            job = with_one_batch(job)
        if mode.check_only:
            return _run_checks(job, start, options)
        return run_job(job, start, options)


def _prepare_only(job: Job, start: RunStart, options: RunOptions) -> Trained:
    prepare = getattr(job.task, "prepare", None)
    if prepare is None:
        raise ConfigError(
            f"the task {escape(job.settings.task)} has nothing to prepare before training.",
            hint="Leave out --preprocess-only.",
        )
    return make_result(
        job, start, checks=(), ended="prepared", notes=tuple(prepare(progress_observer(options.observer)))
    )


def _evaluate_only(job: Job, start: RunStart, split: str) -> Trained:
    """Evaluate the initial weights on a split, and return the result; raises ConfigError if there is no such split."""
    source = job.dev if split == "dev" else job.test
    if source is None:
        raise ConfigError(
            f"{escape(start.config)} has no split {split}.",
            hint=f"Give the split in train.data.{split}, or evaluate another split.",
        )
    job = single_process_job(job)
    model, _ = job.model()
    found = evaluate_shared(ParallelModel(model), job.task, source, settings=job.settings)
    return replace(make_result(job, start, checks=(), ended="evaluated"), figures=found.figures)


def _run_checks(job: Job, start: RunStart, options: RunOptions) -> Trained:
    job = single_process_job(job)
    model, plan = job.model()
    checks = collect_checks("before", checks_before(job, model, plan), options.observer)
    return make_result(job, start, checks=checks, ended="", notes=_unread_note(job))


def _unread_note(job: Job) -> tuple[str, ...]:
    """Return a note on the data whose values the checks before the first step do not read; () if there are none.

    Texts were read and tokenised as a whole when the job was built.
    """
    more = job.train.size(0) - 1
    rest = [f"{count(more, 'more batch', 'more batches')} of train"] if more > 0 else []
    rest += [name for name in SPLITS if getattr(job, name) is not None]
    if not rest or hasattr(job.train, TEXTS_DIGEST):
        return ()
    said = f"the checks read only the first batch of train; the values in {' and in '.join(rest)} are not checked"
    splits = [one.split for one in (job.train, job.dev, job.test) if isinstance(one, Batches) and not one.split.made_by]
    are_arrays = {clip.path.endswith(ARRAY) for split in splits for clip in split.clips}
    if False in are_arrays:
        said += (
            f"; --preprocess-only reads {'all sounds, but no arrays (.npy)' if True in are_arrays else 'all sounds'}"
        )
    return (said,)
