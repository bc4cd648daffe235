"""Figures of an evaluation: share of blanks, clips too short for CTC, collapse, one batch by heart."""

from __future__ import annotations

from collections.abc import Mapping

from ...util.text import apart, count, percent
from ..loop import COLLAPSED, TrainingLoop
from ..state.run_progress import RunProgress
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["ONE_BATCH", "blank_share", "clips_long_enough", "not_collapsed", "overfits_one_batch"]

BLANK_PLATEAU = 0.995
NO_CTC = "no CTC in this task"
NOT_EVALUATED = "nothing was evaluated"


def blank_share(figures: Mapping[str, float]) -> Check:
    """Name the plateau on which CTC models begin and may stay: every frame is blank, the loss falls no further."""
    name = "share of blanks"
    if "blanks" not in figures:
        return Check(name, NOT_RUN, NO_CTC if figures else NOT_EVALUATED)
    share = figures["blanks"]
    if share >= BLANK_PLATEAU:
        return Check(
            name, FAIL, f"{percent(share, 1)} of frames: the all-blank plateau; train longer, or with another lr"
        )
    return Check(name, PASS, f"{percent(share, 1)} of frames")


def clips_long_enough(standing: RunProgress) -> Check:
    """Count clips with fewer frames than labels and repeats: no alignment exists, and nothing is learned of them.

    Those of training in the first epoch, as far as it came, those of dev in the last evaluation.
    """
    name = "clips long enough"
    trained, seen = standing.too_short, standing.fresh
    evaluated = standing.figures.get("too_short")
    if trained is None and evaluated is None:
        return Check(name, NOT_RUN, NO_CTC if standing.step or standing.figures else "no step was taken")
    said = [f"{trained} of {count(seen, 'clip')} of train"] if trained is not None else []
    said += [f"{int(evaluated)} of dev"] if evaluated is not None else []
    if trained or evaluated:
        return Check(name, WARN, f"{', '.join(said)} with fewer frames than labels and repeats")
    return Check(name, PASS, f"too short: {', '.join(said)}")


COLLAPSE = "did not collapse"


def not_collapsed(loop: TrainingLoop) -> Check:
    """Say why a run was ended as collapsed, or what the task finds doubtful in the figures of the last evaluation."""
    task, standing = loop.job.task, loop.standing
    if not hasattr(task, "collapsed"):
        return Check(COLLAPSE, NOT_RUN, "the task names no collapse")
    if standing.ended == COLLAPSED:
        return Check(COLLAPSE, FAIL, f"stopped at step {standing.step}: {standing.collapse}")
    if standing.collapse:
        return Check(COLLAPSE, FAIL, standing.collapse)
    doubts = task.doubts(standing.figures) if standing.figures and hasattr(task, "doubts") else ""
    return Check(COLLAPSE, WARN, doubts) if doubts else Check(COLLAPSE, PASS, f"{standing.step} steps")


ONE_BATCH = "one batch by heart"
BELOW = 0.05


def overfits_one_batch(figures: Mapping[str, float], metric: str, step: int, *, higher: bool = False) -> Check:
    """Hold the metric on the one batch that was trained on against 0.05, or 0.95 where ``higher`` is better."""
    if metric not in figures:
        return Check(ONE_BATCH, NOT_RUN, f"the task gives no {metric}")
    value = figures[metric]
    bound = 1 - BELOW if higher else BELOW
    said, wanted = apart(value, bound)
    says = f"{metric} {said} after {step} steps, to be {'above' if higher else 'below'} {wanted}"
    return Check(ONE_BATCH, PASS if (value > bound if higher else value < bound) else FAIL, says)
