"""Checks of an evaluation's figures: share of blanks, clips too short for CTC, collapse, one batch learned by heart."""

from __future__ import annotations

from collections.abc import Mapping

from ...util.text import apart, count, percent
from ..state.run_progress import COLLAPSED, RunProgress
from ..state.training_state import TrainingState
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["ONE_BATCH", "blank_share", "clips_long_enough", "not_collapsed", "overfits_one_batch"]

BLANK_PLATEAU = 0.995
READ = 0.9
"""A model with a lower letter error rate reads something."""
EARLY = 100
"""In fewer steps than this, a healthy CTC model may still output blanks alone."""
NO_CTC = "no CTC in this task"
NOT_EVALUATED = "nothing was evaluated"


def blank_share(figures: Mapping[str, float], *, steps: int, diverged: bool = False) -> Check:
    """Fail if a CTC model reads nothing: the blank in 99.5 % or more of the frames, and hardly a letter right.

    Long clips with short texts have as many blanks, but their texts are read. CTC models begin with blanks alone, so
    this is only a warning in a run of fewer than ``EARLY`` steps. ``figures`` are the metrics of the last evaluation.
    ``diverged`` is true if NaN or infinity ended the run; the check then advises another learning rate, but not longer
    training.
    """
    name = "share of blanks"
    if "blanks" not in figures:
        return Check(name, NOT_RUN, NO_CTC if figures else NOT_EVALUATED)
    share = figures["blanks"]
    said = f"{percent(share, 1)} of frames"
    if share < BLANK_PLATEAU or figures.get("cer", 1.0) < READ:
        return Check(name, PASS, said)
    advice = "train with a different lr" if diverged else "train longer, or with a different lr"
    status = FAIL if diverged or steps >= EARLY else WARN
    return Check(name, status, f"{said}: the model is stuck at blank outputs (the all-blank plateau); {advice}")


def clips_long_enough(progress: RunProgress) -> Check:
    """Warn about clips that CTC cannot align: CTC needs a frame for each label, and one between two equal labels.

    The count covers the training clips that the run saw in its first epoch, and the dev clips of the last evaluation.
    """
    name = "clips long enough"
    trained, seen = progress.too_short, progress.fresh
    evaluated = progress.figures.get("too_short")
    if trained is None and evaluated is None:
        return Check(name, NOT_RUN, NO_CTC if progress.step or progress.figures else "no step was taken")
    said = [f"{trained} of {count(seen, 'clip')} of train"] if trained is not None else []
    said += [f"{count(int(evaluated), 'clip')} of dev"] if evaluated is not None else []
    if trained or evaluated:
        return Check(name, WARN, f"{', '.join(said)} with fewer frames than CTC needs for the labels")
    return Check(name, PASS, f"too short: {', '.join(said)}")


COLLAPSE = "did not collapse"


def not_collapsed(state: TrainingState) -> Check:
    """Fail if the run collapsed (it cannot learn any more); warn if metrics of the last evaluation are suspicious.

    The task decides this by its methods ``collapsed`` and ``doubts``, which return the reason.
    """
    task, progress = state.job.task, state.progress
    if getattr(task, "collapsed", None) is None:
        return Check(COLLAPSE, NOT_RUN, "the task does not say how to recognise a collapse")
    if progress.ended == COLLAPSED:
        return Check(COLLAPSE, FAIL, f"stopped at step {progress.step}: {progress.collapse}")
    if progress.collapse:
        return Check(COLLAPSE, FAIL, progress.collapse)
    find_doubts = getattr(task, "doubts", None)
    doubts = find_doubts(progress.figures) if progress.figures and find_doubts is not None else ""
    return Check(COLLAPSE, WARN, doubts) if doubts else Check(COLLAPSE, PASS, f"{progress.step} steps")


ONE_BATCH = "one batch by heart"
BELOW = 0.05


def overfits_one_batch(figures: Mapping[str, float], metric: str, step: int, *, higher: bool = False) -> Check:
    """Pass if the metric on the only training batch is below 0.05, else fail.

    If ``higher`` is true, higher values are better, and the metric must be above 0.95.

    ``figures`` are the metrics of the last evaluation, after ``step`` steps.
    """
    if metric not in figures:
        return Check(ONE_BATCH, NOT_RUN, f"the task does not return the metric {metric}")
    value = figures[metric]
    bound = 1 - BELOW if higher else BELOW
    said, wanted = apart(value, bound)
    says = f"{metric} {said} after {step} steps; it must be {'above' if higher else 'below'} {wanted}"
    return Check(ONE_BATCH, PASS if (value > bound if higher else value < bound) else FAIL, says)
