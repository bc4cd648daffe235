"""Checks of what a run saves: a new process computes the same loss, a resumed run takes the same steps.

This module is also the program that the new process runs. It reads JSON from stdin with a configuration, settings and
files of weights, and prints a line with the loss of each file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...util.text import apart, count, listing
from ..data.source import first_batch
from ..evaluation import evaluate, loss_per_item
from ..folder.run_folder import RunFolder
from ..job.assembly import build_job, with_one_batch
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..loop import TrainingLoop
from ..state.model_tensors import digests, state_tensors, unsaved_buffers
from ..state.saved_model import saved_model
from ..state.training_state import NONFINITE
from ..system.device import torch_settings
from ..system.random_state import random_state
from ..tasks._task import begin_step
from .check import FAIL, NOT_RUN, PASS, Check

__all__ = [
    "BEST_REOPENED",
    "LOSS_PREFIX",
    "REOPENED",
    "RESUMED",
    "SavedWeights",
    "all_tensors",
    "differing",
    "main",
    "reload_in_new_process",
    "resume_is_exact",
]


LOSS_PREFIX = "loss of what was saved: "
"""The beginning of each line with a loss; a task may print other lines."""


def main() -> None:
    """Read JSON from stdin, and print the loss of the model for each file of weights that the JSON lists."""
    order = json.load(sys.stdin)
    init = read_init(order["init"]) if order["init"] else None
    job = build_job(order["config"], sets=order["sets"], device=order["device"], init=init)
    with torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary), closing(job):
        if order["overfitting"]:
            job = with_one_batch(job)
        for saved in order["saved"]:
            sys.stdout.write(f"\n{LOSS_PREFIX}{_loss(job, saved)!r}\n")
            sys.stdout.flush()


def _loss(job: Job, saved: Mapping[str, Any]) -> float:
    model = saved_model(job, saved["weights"])
    begin_step(job.task, model, saved["step"])
    if saved["dev"]:
        assert job.dev is not None
        return evaluate(model, job.task, job.dev.read(0, 0), settings=job.settings)["loss"]
    return loss_per_item(model, job.task, [first_batch(job.train, job.settings.seed)], settings=job.settings)


REOPENED = "saved, reopened, the same loss"
BEST_REOPENED = "best, reopened, the same loss"
TOLERANCE, TOLERANCE_GPU = 1e-6, 1e-3
TIMEOUT_S = 600
NO_MEMORY = ("OutOfMemoryError", "CUDA error: out of memory", "ALLOC_FAILED")
"""An error message that says that GPU memory ran out contains one of these words (torch, CUDA, CUDA's libraries)."""


@dataclass(frozen=True)
class SavedWeights:
    """A file of weights, and the loss of its model over ``dev`` or on the first batch of training.

    ``name`` is the name of the check. ``step`` is the last step that had begun when the loss was computed, because a
    task's loss may depend on the step.
    """

    name: str
    weights: str
    loss: float
    dev: bool = False
    step: int = 0


def reload_in_new_process(
    job: Job,
    saved: Sequence[SavedWeights],
    *,
    sets: Sequence[str],
    overfitting: bool = False,
    folder: str | None = None,
) -> Iterator[Check]:
    """Load the ``saved`` files in a new process; for each file, yield a check that its loss is still the same.

    ``sets`` are the ``--set`` strings of the run. ``overfitting`` is true if the run trains on one batch only.
    ``folder`` is the working directory of the new process.
    """
    order = {
        "config": job.document.path, "sets": list(sets), "device": job.device.type, "overfitting": overfitting,
        "init": os.path.abspath(job.init.path) if job.init is not None else None,
        "saved": [asdict(one) for one in saved],
    }  # fmt: skip
    command = [sys.executable, "-m", __name__]
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # the new process shares the GPU with this one
    try:
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder
        )
    except subprocess.TimeoutExpired:
        yield from (Check(one.name, NOT_RUN, f"the new process took longer than {TIMEOUT_S} s") for one in saved)
        return
    lines = done.stdout.splitlines()
    losses = [float(line.removeprefix(LOSS_PREFIX)) for line in lines if line.startswith(LOSS_PREFIX)]
    for one, loss in zip(saved, losses, strict=False):
        yield _same(one, loss, TOLERANCE if job.device.type == "cpu" else TOLERANCE_GPU)
    last = (done.stderr.strip().splitlines() or ["the new process gave no message"])[-1]
    for one in saved[len(losses) :]:
        if any(words in done.stderr for words in NO_MEMORY):
            yield Check(one.name, NOT_RUN, "the GPU has no memory for a second process")
        else:
            yield Check(one.name, FAIL, f"the new process computed no loss of the weights: {last[:200]}")


def _same(saved: SavedWeights, found: float, near: float) -> Check:
    same = math.isclose(found, saved.loss, rel_tol=near, abs_tol=1e-9) or (math.isnan(found) and math.isnan(saved.loss))
    over = ", over dev" if saved.dev else ""
    now, before = (f"{found:.6g}", f"{saved.loss:.6g}") if same else apart(found, saved.loss, digits=6)
    return Check(saved.name, PASS if same else FAIL, f"loss {now} now, {before} when it was saved{over}")


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


if __name__ == "__main__":
    main()
