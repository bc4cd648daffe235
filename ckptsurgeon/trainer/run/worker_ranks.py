"""What the ranks other than 0 do: they train, and leave checking, writing and printing to rank 0."""

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
from ..loop import LOST, TrainingLoop
from ..parallel.ranks import LostRanksError, Ranks
from ..parallel.sharded_model import shard_task
from ..system.compiling import explain_compile_errors
from ..system.device import explain_out_of_memory, torch_settings
from ..system.signals import catch_stop_signals
from .result import Trained
from .run_job import lost_notes, make_result
from .start import RunStart
from .train_request import TrainRequest, rank_mismatch

__all__ = ["run_worker"]


def run_worker(ranks: Ranks, device: torch.device) -> Trained:
    """Train as the first process tells; returns what is known here of what came of it.

    Raises what reading the configuration and its data raises. Where the first one ended and has said why, nothing more
    is said.
    """
    try:
        with ranks.explaining():
            going: TrainRequest | None = ranks.told(None)
            return _trained(going, ranks, device) if going is not None else _nothing(ranks)
    except LostRanksError as error:
        if _speaks(ranks, error.ranks):
            raise
        return _nothing(ranks, exit_code=error.exit_code)


def _trained(going: TrainRequest, ranks: Ranks, device: torch.device) -> Trained:
    init = read_init(going.init) if going.init is not None else None
    job = build_job(going.config, sets=going.sets, device=device, init=init, ranks=ranks, strategy=going.strategy)
    with (
        torch_settings(job.settings),
        closing(job),
        explain_out_of_memory(job.settings),
        explain_compile_errors(job.settings),
    ):
        if going.overfit:
            job = with_one_batch(job)
        if rank_mismatch(job) is not None:  # the first one says so
            return _nothing(ranks, exit_code=ConfigError.exit_code)
        loop = _loop_of(job, going)
        if loop is None:
            return _nothing(ranks, exit_code=ConfigError.exit_code)
        with catch_stop_signals() as stop:
            ended = loop.run(stop=stop)
        if job.is_sharded and ended != LOST and not loop.stopped:
            list(checks_during(loop))
    found = make_result(job, RunStart(going.config, init, from_=going.init), checks=(), ended=ended)
    return replace(
        found, step=loop.standing.step, rank=ranks.rank, exit_code=1 if ended == LOST else 0,
        last_loss=loop.standing.last_loss, figures=loop.standing.figures,
        notes=lost_notes(loop.lost, RunFolder(going.run)) if _speaks(ranks, loop.lost) else (),
    )  # fmt: skip


def _loop_of(job: Job, going: TrainRequest) -> TrainingLoop | None:
    """Return the run about to begin, or as it was saved; None where it cannot begin, which the first one says."""
    spread, plan = (job.empty_spread(), None) if going.resume else job.spread()
    job = shard_task(job, spread)
    if going.resume:
        loop = TrainingLoop(job, spread)
        loop.restore(*RunFolder(going.run).load())
        return loop
    if job.is_sharded:  # it puts its part to what the first one looks at
        try:
            list(checks_before(job, spread.model, plan))
        except ConfigError:
            return None
    return TrainingLoop(job, spread)


def _speaks(ranks: Ranks, lost: Mapping[int, str]) -> bool:
    """Whether it is up to this process to say who ended: the first one is gone, and has not said why."""
    living = set(range(ranks.size)) - set(lost)
    return lost.get(0) == "" and ranks.rank == min(living)


def _nothing(ranks: Ranks, exit_code: int = 0) -> Trained:
    return Trained(
        config="", run=None, init=None, task="", device="", step=0, steps=0, ended="", checks=(), rank=ranks.rank,
        exit_code=exit_code,
    )  # fmt: skip
