"""The progress of a run: its state without tensors, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["COLLAPSED", "DONE", "FAILED", "LOST", "NONFINITE", "PATIENCE", "RunProgress"]

DONE, PATIENCE, NONFINITE, COLLAPSED, LOST = "done", "patience", "nonfinite", "collapsed", "lost"
FAILED = "failed"
"""These six strings are the reasons why a run ended; ``FAILED`` means that a check failed before the first step.

If a signal ended the run, the reason is the name of the signal.
"""


@dataclass
class RunProgress:
    """Counters and metrics of a run; in checkpoints, they have the same names as here.

    - ``step``: the number of steps done; ``seconds``: the time spent on steps and evaluations.
    - ``best``: the best value of the metric; ``best_step``: the number of steps before the evaluation that gave this
      value, with the lowest loss if several did; ``best_loss``: the loss of that evaluation; ``waited``: the number of
      evaluations since the value became better.
    - ``skipped``: the number of steps that were skipped because loss or gradients were not finite; ``in_a_row``: the
      number of such steps since the last finite step.
    - ``collapsed``: the number of steps in a row, up to the last step, for which the task's method ``collapsed``
      returned a reason; ``collapse``: the last reason.
    - ``first_loss``, ``last_loss``: the loss of the first and of the last step.
    - ``figures``: the metrics of the last evaluation; ``evaluated``: the number of steps before this evaluation.
    - ``ratios``: the norm of each tensor's change in the last step that was measured, relative to the tensor's norm.
    - ``norms``: statistics of the gradient norm: number of steps, how many were clipped, the largest norm, the sum.
    - ``fresh``: the number of clips seen in the first epoch; ``too_short``: the number of these clips that
      have too few frames for CTC (None without CTC).
    - ``lr_scale``: the factor by which evaluations have lowered the learning rate; ``compared``: the metric with which
      the next evaluation is compared; ``stalled``: the number of evaluations that did not
      improve enough (see ``anneal``).
    - ``ended``: the reason why the run ended, or ''.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_loss: float | None = None
    waited: int = 0
    skipped: int = 0
    in_a_row: int = 0
    collapsed: int = 0
    collapse: str = ""
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=lambda: {"steps": 0, "clipped": 0, "largest": 0.0, "sum": 0.0})
    too_short: int | None = None
    fresh: int = 0
    evaluated: int = 0
    lr_scale: float = 1.0
    compared: float | None = None
    stalled: int = 0
    ended: str = ""

    def count(self, row: dict[str, Any], clip: float | None) -> None:
        """Update the counters from a step's row in the log; ``clip`` is the norm to which gradients are clipped."""
        self.in_a_row = self.in_a_row + 1 if row["skipped"] else 0
        self.skipped += row["skipped"]
        self.first_loss = row["loss"] if self.first_loss is None else self.first_loss
        self.last_loss = row["loss"]
        if "too_short" in row:
            self.too_short = (self.too_short or 0) + row["too_short"]
            self.fresh += row["fresh"]
        norm = row["grad_norm"]
        if norm is not None:
            self.norms["steps"] += 1
            self.norms["sum"] += norm
            self.norms["largest"] = max(self.norms["largest"], norm)
            self.norms["clipped"] += clip is not None and norm > clip

    def improves(self, value: float, *, higher_is_better: bool) -> bool:
        """Record ``value``, the metric of the last evaluation; return whether its model is the best (NaN: never).

        Of equal values the one with the lower loss is better, since at the beginning all error rates may be 1. But
        ``waited`` counts on then: a loss may fall by next to nothing for ever.
        """
        is_better = not math.isnan(value)
        if is_better and self.best is not None:
            is_better = value > self.best if higher_is_better else value < self.best
        self.waited = 0 if is_better else self.waited + 1
        if not is_better and not (value == self.best and self._has_lower_loss()):
            return False
        self.best, self.best_step, self.best_loss = value, self.step, self.figures.get("loss")
        return True

    def _has_lower_loss(self) -> bool:
        loss, best = self.figures.get("loss"), self.best_loss
        return loss is not None and best is not None and (loss < best or (math.isnan(best) and not math.isnan(loss)))

    def waited_for(self, patience: int | None) -> bool:
        """Return whether the metric did not improve in the last ``patience`` evaluations; False if that is None."""
        return patience is not None and self.waited >= patience

    def to_json(self) -> dict[str, Any]:
        """Return the progress as a dict for JSON."""
        return asdict(self)
