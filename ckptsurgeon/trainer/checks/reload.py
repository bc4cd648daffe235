"""Checks that the saved weights of a run have the same loss in a new process.

This module is also the program that the new process runs. It reads JSON from stdin with a configuration, settings and
files of weights, and prints a line with the loss of each file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...util.text import apart
from ..data.source import first_batch
from ..evaluation import evaluate, loss_per_item
from ..job.assembly import build_job, with_one_batch
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..state.saved_model import saved_model
from ..system.compiling import lengths_vary
from ..system.device import torch_settings
from ..tasks._task import begin_step
from .check import FAIL, NOT_RUN, PASS, Check

__all__ = ["BEST_REOPENED", "LOSS_PREFIX", "REOPENED", "SavedWeights", "main", "reload_in_new_process"]

LOSS_PREFIX = "loss of what was saved: "
"""The beginning of each line with a loss; a task may print other lines."""


def main() -> None:
    """Read JSON from stdin, and print the loss of the model for each file of weights that the JSON lists."""
    order = json.load(sys.stdin)
    init = read_init(order["init"]) if order["init"] else None
    job = build_job(order["config"], sets=order["sets"], device=order["device"], init=init)
    with torch_settings(job.settings, job.device, lengths_vary=lengths_vary(job)), closing(job):
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
            yield Check(one.name, FAIL, f"the weights cannot be opened: {last[:200]}")


def _same(saved: SavedWeights, found: float, near: float) -> Check:
    same = math.isclose(found, saved.loss, rel_tol=near, abs_tol=1e-9) or (math.isnan(found) and math.isnan(saved.loss))
    over = ", over dev" if saved.dev else ""
    now, before = (f"{found:.6g}", f"{saved.loss:.6g}") if same else apart(found, saved.loss, digits=6)
    return Check(saved.name, PASS if same else FAIL, f"loss {now} now, {before} when it was saved{over}")


if __name__ == "__main__":
    main()
