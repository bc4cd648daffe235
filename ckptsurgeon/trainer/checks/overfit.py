"""A model that learns can learn one batch by heart."""

from __future__ import annotations

from collections.abc import Mapping

from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["NAME", "overfit"]

NAME = "one batch by heart"
BELOW = 0.05


def overfit(figures: Mapping[str, float], metric: str, step: int) -> Check:
    """Hold the metric on the one batch that was trained on against 0.05."""
    if metric not in figures:
        return Check(NAME, NOT_RUN, f"the task gives no {metric}")
    says = f"{metric} {figures[metric]:.3g} after {step} steps, to be below {BELOW}"
    return Check(NAME, PASS if figures[metric] < BELOW else FAIL, says)
