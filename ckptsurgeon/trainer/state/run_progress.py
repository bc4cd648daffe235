"""The progress of a run: everything it knows besides its tensors, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["COLLAPSED", "DONE", "FAILED", "LOST", "NONFINITE", "PATIENCE", "RunProgress"]

DONE, PATIENCE, NONFINITE, COLLAPSED, LOST = "done", "patience", "nonfinite", "collapsed", "lost"
FAILED = "failed"
"""How a run may end, besides the names of signals; the last: a check failed before the first step."""


@dataclass
class RunProgress:
    """Counters and figures of a run. Checkpoints hold them under these names.

    ``step`` is the number of steps done. ``best`` is the best value of the metric; the evaluation after ``best_step``
    steps gave it, and its loss was ``best_loss``. ``waited`` counts the evaluations since then. ``skipped`` counts the
    steps that were not finite, ``in_a_row`` those of them since the last finite step. ``collapsed`` counts how many of
    the last steps in a row the task calls collapsed, ``collapse`` says why. ``ratios`` is how far one step moved each
    tensor, as a share of its norm, when that was last measured. ``seconds`` is the time spent on steps and evaluations.
    ``figures`` are those of the last evaluation, after ``evaluated`` steps. ``norms`` are of the gradient norm: the
    number of steps, how many were clipped, the largest, and the sum. ``too_short`` is how many of the ``fresh`` clips
    of the first epoch have too few frames for CTC; it is None if the task does not use CTC. ``lr_scale`` is the factor
    of the learning rate by which evaluations have lowered it, ``compared`` the metric that the next evaluation is
    compared with, ``stalled`` how many evaluations were not better since then.
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
        """Update the counters by the row of a step in the log; ``clip`` is the largest gradient norm (None: any)."""
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
        """Record ``value``, the metric of the last evaluation; returns whether it is the best so far. NaN never is."""
        is_better = not math.isnan(value)
        if is_better and self.best is not None:
            is_better = value > self.best if higher_is_better else value < self.best
        if not is_better:
            self.waited += 1
            return False
        self.best, self.best_step, self.waited = value, self.step, 0
        self.best_loss = self.figures.get("loss")
        return True

    def waited_for(self, patience: int | None) -> bool:
        """Whether ``patience`` evaluations in a row brought no better model."""
        return patience is not None and self.waited >= patience

    def to_json(self) -> dict[str, Any]:
        """Return the progress as a dict for JSON."""
        return asdict(self)
