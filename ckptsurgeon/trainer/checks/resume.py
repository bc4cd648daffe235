"""Checks that 2 k steps in one run give the same bits as k steps, a checkpoint, and k more steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from ...util.text import count, listing
from ..folder.run_folder import RunFolder
from ..job.job import Job
from ..loop import TrainingLoop
from ..state.model_tensors import digests, state_tensors, unsaved_buffers
from ..state.run_progress import NONFINITE
from ..system.random_state import random_state
from .check import FAIL, NOT_RUN, PASS, Check

__all__ = ["RESUMED", "all_tensors", "differing", "resume_is_exact"]

RESUMED = "resumed is uninterrupted"
STEPS = 2
TIME_LIMIT_S = 20.0


def resume_is_exact(job: Job, *, step_s: float) -> Check:
    """Check that 4 steps in one run end with the same bits as 2 steps, a checkpoint, and 2 more steps.

    ``step_s`` is the time of a step in seconds: the check does not run if its steps would take more than 20 s.
    """
    if job.device.type != "cpu":
        return Check(RESUMED, NOT_RUN, "only a CPU run repeats bit for bit: a GPU sums in a different order each time")
    if job.settings.steps < 2 * STEPS:
        return Check(RESUMED, NOT_RUN, f"the run has fewer than {2 * STEPS} steps")
    if 4 * STEPS * step_s > TIME_LIMIT_S:
        return Check(RESUMED, NOT_RUN, f"{4 * STEPS} steps would take {4 * STEPS * step_s:.0f} s")
    whole = _fresh(job)
    if whole.run(until=2 * STEPS) == NONFINITE:
        return Check(RESUMED, NOT_RUN, "too many of the first steps are not finite")
    wanted = {**digests(all_tensors(whole)), **digests(_generators())}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.create()
        first = _fresh(job, run)
        if first.run(until=STEPS) == NONFINITE:
            return Check(RESUMED, NOT_RUN, "the repeated steps are not finite, so nothing was saved to resume from")
        second = _fresh(job)
        second.state.restore(*run.load())
    second.run(until=2 * STEPS)
    wrong = differing(wanted, {**digests(all_tensors(second)), **digests(_generators())})
    if wrong:
        differ = count(len(wrong), "tensor differs", "tensors differ")
        return Check(RESUMED, FAIL, f"{differ} after {STEPS} + {STEPS} steps: {listing(wrong, where='')}")
    return Check(RESUMED, PASS, f"{2 * STEPS} steps = {STEPS} + {STEPS}, bit for bit")


def _fresh(job: Job, folder: RunFolder | None = None) -> TrainingLoop:
    model, _ = job.model()
    return TrainingLoop(job, model, folder=folder)


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the keys with different digests in two mappings from key to digest, and keys that only one mapping has."""
    return [key for key in one if one[key] != other.get(key)] + [key for key in other if key not in one]


def all_tensors(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    """Return all tensors on which the rest of a run depends: model, optimizer, average of weights, unsaved buffers."""
    found: dict[str, torch.Tensor] = dict(state_tensors(loop.model))
    state: dict[Any, Any] = loop.state.optimizer.inner.state_dict()["state"]
    for index, entries in state.items():
        found |= {f"optimizer.{index}.{name}": value for name, value in entries.items() if torch.is_tensor(value)}
    found |= {f"average.{key}": value for key, value in (loop.state.ema.tensors if loop.state.ema else {}).items()}
    return found | {f"unsaved.{key}": value for key, value in unsaved_buffers(loop.model).items()}


def _generators() -> dict[str, torch.Tensor]:
    """Return the current states of the random generators of torch, Python and numpy, as tensors by name."""
    state = random_state()
    return {
        "random": state["torch"],
        "random of Python": torch.tensor(state["python"][1]),
        "random of numpy": torch.cat([state["numpy"][1], torch.tensor(state["numpy"][2:3])]),
    }
