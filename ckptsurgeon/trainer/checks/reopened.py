"""The saved model, opened again by another process, gives the same loss."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence

from .. import again
from ..job import Job
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["NAME", "reopened"]

NAME = "saved, reopened, the same loss"
NEAR, NEAR_ON_GPU = 1e-6, 1e-3
LONGEST_S = 600


def reopened(job: Job, weights: str, *, loss: float, sets: Sequence[str], folder: str | None = None) -> Check:
    """Start a process that loads ``weights`` and compares its loss, of the first batch, with ``loss``."""
    order = {"config": job.document.path, "sets": list(sets), "weights": weights, "device": job.device.type}
    command = [sys.executable, "-m", again.__name__]
    try:
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, timeout=LONGEST_S, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return Check(NAME, NOT_RUN, f"it took longer than {LONGEST_S} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Check(NAME, FAIL, f"it cannot be opened: {last[:200]}")
    found = float(done.stdout.strip().splitlines()[-1])
    near = NEAR if job.device.type == "cpu" else NEAR_ON_GPU
    says = f"{found:.6g} where it was {loss:.6g}"
    return Check(NAME, PASS if math.isclose(found, loss, rel_tol=near, abs_tol=1e-9) else FAIL, says)
