"""2 k steps are k steps, a checkpoint, and k steps, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from ...text import count, listing
from ..digests import digests
from ..job import Job, tensors_of
from ..loop import Loop
from ..run_folder import RunFolder
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["NAME", "resumed"]

NAME = "resumed is uninterrupted"
STEPS = 2
LONGEST_S = 20.0


def resumed(job: Job, *, step_s: float) -> Check:
    """Train 2 k steps twice, once through a checkpoint on disk; ``step_s`` is how long a step takes, in seconds."""
    if job.device.type != "cpu":
        return Check(NAME, NOT_RUN, "a GPU adds in another order each time; the CPU promises the bits")
    if job.settings.steps < 2 * STEPS:
        return Check(NAME, NOT_RUN, f"the run has fewer than {2 * STEPS} steps")
    if 4 * STEPS * step_s > LONGEST_S:
        return Check(NAME, NOT_RUN, f"{4 * STEPS} steps would take {4 * STEPS * step_s:.0f} s")
    whole = _fresh(job)
    whole.run(until=2 * STEPS)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.create()
        first = _fresh(job, run)
        first.run(until=STEPS)
        second = _fresh(job)
        second.restore(*run.load())
    second.run(until=2 * STEPS)
    wrong = _differing(whole, second)
    if wrong:
        return Check(
            NAME, FAIL, f"{count(len(wrong), 'tensor')} after {STEPS} + {STEPS} steps: {listing(wrong, where='')}"
        )
    return Check(NAME, PASS, f"{2 * STEPS} steps = {STEPS} + {STEPS}, bit for bit")


def _fresh(job: Job, folder: RunFolder | None = None) -> Loop:
    model, _ = job.model()
    return Loop(job, model, folder=folder)


def _differing(one: Loop, other: Loop) -> list[str]:
    """Return what differs: tensors of the model, of the optimiser and the average, and the random state."""
    a, b = (digests(_everything(loop)) for loop in (one, other))
    return [key for key in a if a[key] != b.get(key)] + [key for key in b if key not in a]


def _everything(loop: Loop) -> Mapping[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(tensors_of(loop.model))
    state: dict[Any, Any] = loop.optimizer.inner.state_dict()["state"]
    for index, entries in state.items():
        found |= {f"optimizer.{index}.{name}": value for name, value in entries.items() if torch.is_tensor(value)}
    found |= {f"average.{key}": value for key, value in (loop.average.tensors if loop.average else {}).items()}
    return {**found, "random": loop.state()["random"]["torch"]}
