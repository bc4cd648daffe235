"""Where a run stands: everything it knows beside its tensors, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["RunProgress"]


@dataclass
class RunProgress:
    """``step`` is how many steps are done. ``best`` is the best metric, reached after ``best_step`` steps.

    ``best_loss`` is the loss of that evaluation. ``waited`` counts evaluations since then, ``skipped`` steps that were
    not finite, ``in_a_row`` the last of them; ``collapsed`` the last steps of which nothing more can come, ``collapse``
    says why. ``ratios`` is how far each tensor moved in one step, as a share of its norm, when that was last measured.
    ``seconds`` is the time spent. ``figures`` are those of the last evaluation; ``norms`` of the gradient's norm the
    number of steps, how many were clipped, the largest, and the sum of all.
    ``evaluated`` is after which step that was. ``too_short`` is how many of the ``fresh`` clips of the first epoch CTC
    can spell in no way, None where nothing is spelled.
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
    ended: str = ""

    def count(self, row: dict[str, Any], clip: float | None) -> None:
        """Take note of a step's row in the log."""
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
        """Take note of the metric of the evaluation in ``figures``; whether it is the best yet."""
        if not self._is_better(value, higher_is_better=higher_is_better):
            self.waited += 1
            return False
        self.best, self.best_step, self.waited = value, self.step, 0
        self.best_loss = self.figures.get("loss")
        return True

    def _is_better(self, value: float, *, higher_is_better: bool) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value > self.best if higher_is_better else value < self.best

    def waited_for(self, patience: int | None) -> bool:
        """Whether the best has not changed for as many evaluations as there is patience for."""
        return patience is not None and self.waited >= patience

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
