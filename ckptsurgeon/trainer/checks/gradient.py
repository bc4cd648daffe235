"""The norm of the gradient keeps to its band, and steps that were not finite are few."""

from __future__ import annotations

from ...util.text import apart, count, percent
from ..loop.loop import NONFINITE, TrainingLoop
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["finite_steps", "gradient_norm"]

MAX_CLIPPED = 0.5
MAX_SPIKE = 100.0


def gradient_norm(loop: TrainingLoop) -> Check:
    """Look at the norm before clipping. A task may name a ``gradient_band``; a warning only, healthy runs leave it."""
    name = "gradient norm"
    norms = loop.standing.norms
    if not norms["steps"]:
        return Check(name, NOT_RUN, "no step was taken")
    mean, clipped = norms["sum"] / norms["steps"], norms["clipped"] / norms["steps"]
    band = getattr(loop.job.work.task, "gradient_band", None)
    said = apart(mean, *(band or ()), digits=2)[0]
    says = f"mean {said}, largest {norms['largest']:.2g}, {percent(clipped)} of steps clipped"
    if band is not None and not band[0] <= mean <= band[1]:
        return Check(name, WARN, f"{says}; healthy runs of this task have {band[0]:g} to {band[1]:g}")
    if clipped > MAX_CLIPPED:
        return Check(name, WARN, f"{says}: train.clip {loop.settings.clip:g} sets the step, not train.lr")
    others = (norms["sum"] - norms["largest"]) / max(norms["steps"] - 1, 1)  # of a mean with it, it is never far
    if norms["steps"] > 1 and norms["largest"] > MAX_SPIKE * others:
        return Check(name, WARN, f"{says}: {MAX_SPIKE:g} times the mean of the others, {others:.2g}")
    return Check(name, PASS, says)


def finite_steps(loop: TrainingLoop) -> Check:
    """Count the steps whose loss or gradient was not finite; they were skipped."""
    name = "finite steps"
    standing = loop.standing
    if loop.standing.ended == NONFINITE:
        return Check(name, FAIL, f"stopped at step {standing.step}: {standing.in_a_row} in a row were not finite")
    if standing.skipped:
        return Check(name, WARN, f"{count(standing.skipped, 'step')} of {standing.step} skipped")
    return Check(name, PASS, f"{standing.step} of {standing.step}")
