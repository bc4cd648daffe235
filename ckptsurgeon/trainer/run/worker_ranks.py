"""Runs the ranks other than 0, which only train; rank 0 also checks, writes and prints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

import torch

from ...errors import ConfigError
from ..checks.suite import checks_before, checks_during
from ..folder.run_folder import RunFolder
from ..job.assembly import build_job, with_one_batch
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..loop import TrainingLoop
from ..parallel.lost_ranks import LostRanksError
from ..parallel.ranks import Ranks
from ..parallel.sharded_task import shard_task
from ..state.training_state import LOST
from ..system.device import explain_compile_errors, explain_out_of_memory, torch_settings
from ..system.signals import catch_stop_signals
from .result import Trained
from .run_job import lost_notes, make_result
from .start import RunStart
from .train_request import TrainRequest, rank_mismatch

__all__ = ["run_worker"]


def run_worker(ranks: Ranks, device: torch.device) -> Trained:
    """Wait for the request of rank 0 and train; return the part of the result that this rank knows.

    Raises an error if the configuration or its data cannot be read. If another rank ends, LostRanksError is raised only
    by the rank that has to report this to the user.
    """
    try:
        with ranks.detect_lost():
            request: TrainRequest | None = ranks.broadcast(None)
            return _train(request, ranks, device) if request is not None else _empty_result(ranks)
    except LostRanksError as error:
        if _reports_loss(ranks, error.ranks):
            raise
        return _empty_result(ranks, exit_code=error.exit_code)


def _train(request: TrainRequest, ranks: Ranks, device: torch.device) -> Trained:
    init = read_init(request.init) if request.init is not None else None
    job = build_job(request.config, sets=request.sets, device=device, init=init, ranks=ranks, strategy=request.strategy)
    with (
        torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary),
        closing(job),
        explain_out_of_memory(job.settings),
        explain_compile_errors(job.settings),
    ):
        if request.overfit:
            job = with_one_batch(job)
        if rank_mismatch(job) is not None:  # rank 0 reports the mismatch
            return _empty_result(ranks, exit_code=ConfigError.exit_code)
        loop = _build_loop(job, request)
        if loop is None:
            return _empty_result(ranks, exit_code=ConfigError.exit_code)
        with catch_stop_signals() as stop:
            ended = loop.run(stop=stop)
        if job.is_sharded and ended != LOST and not loop.stopped:
            list(checks_during(loop))
    found = make_result(job, RunStart(request.config, init, from_=request.init), checks=(), ended=ended)
    progress, lost = loop.state.progress, loop.state.lost_ranks
    return replace(
        found, step=progress.step, rank=ranks.rank, exit_code=1 if ended == LOST else 0, last_loss=progress.last_loss,
        figures=progress.figures,
        notes=lost_notes(lost, RunFolder(request.run)) if _reports_loss(ranks, lost) else (),
    )  # fmt: skip


def _build_loop(job: Job, request: TrainRequest) -> TrainingLoop | None:
    """Return the training loop of a new or resumed run; None if the run cannot begin (rank 0 reports why)."""
    model, plan = (job.empty_parallel_model(), None) if request.resume else job.parallel_model()
    job = shard_task(job, model) if job.is_sharded else job
    if request.resume:
        loop = TrainingLoop(job, model)
        loop.state.restore(*RunFolder(request.run).load())
        return loop
    if job.is_sharded:  # the checks of rank 0 run the model, which needs the shards of this rank
        try:
            list(checks_before(job, model.module, plan))
        except ConfigError:
            return None
    return TrainingLoop(job, model)


def _reports_loss(ranks: Ranks, lost: Mapping[int, str]) -> bool:
    """Return whether this rank must report the lost ranks to the user.

    This is true if rank 0 is lost and has sent no reason, and this rank is the lowest of all ranks that still run.
    """
    living = set(range(ranks.size)) - set(lost)
    return lost.get(0) == "" and ranks.rank == min(living)


def _empty_result(ranks: Ranks, exit_code: int = 0) -> Trained:
    return Trained(
        config="", run=None, init=None, task="", device="", step=0, steps=0, ended="", checks=(), rank=ranks.rank,
        exit_code=exit_code,
    )  # fmt: skip
