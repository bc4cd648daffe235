"""A loss that fell because there was nothing left to tell apart is no success, of tasks that can collapse."""

from __future__ import annotations

from ..loop.loop import COLLAPSED, TrainingLoop
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["not_collapsed"]

COLLAPSE = "did not collapse"


def not_collapsed(loop: TrainingLoop) -> Check:
    """Say why a run was ended as collapsed, or what the task finds doubtful in the figures of the last evaluation."""
    task, standing = loop.job.work.task, loop.standing
    if not hasattr(task, "collapsed"):
        return Check(COLLAPSE, NOT_RUN, "the task names no collapse")
    if standing.ended == COLLAPSED:
        return Check(COLLAPSE, FAIL, f"stopped at step {standing.step}: {standing.collapse}")
    if standing.collapse:
        return Check(COLLAPSE, FAIL, standing.collapse)
    doubts = task.doubts(standing.figures) if standing.figures and hasattr(task, "doubts") else ""
    return Check(COLLAPSE, WARN, doubts) if doubts else Check(COLLAPSE, PASS, f"{standing.step} steps")
