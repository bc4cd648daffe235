"""A loss that fell because there was nothing left to tell apart is no success, of tasks that can collapse."""

from __future__ import annotations

from ..loop.loop import COLLAPSED, Loop
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["collapse"]

NAME = "did not collapse"


def collapse(loop: Loop) -> Check:
    """Say why a run was ended as collapsed, or what the task finds doubtful in the figures of the last evaluation."""
    task, standing = loop.job.work.task, loop.standing
    if not hasattr(task, "collapsed"):
        return Check(NAME, NOT_RUN, "the task names no collapse")
    if standing.ended == COLLAPSED:
        return Check(NAME, FAIL, f"stopped at step {standing.step}: {standing.collapse}")
    if standing.collapse:
        return Check(NAME, FAIL, standing.collapse)
    doubts = task.doubts(standing.figures) if standing.figures and hasattr(task, "doubts") else ""
    return Check(NAME, WARN, doubts) if doubts else Check(NAME, PASS, f"{standing.step} steps")
