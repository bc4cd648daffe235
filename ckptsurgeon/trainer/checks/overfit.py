"""A model that learns can learn one batch by heart."""

from __future__ import annotations

from collections.abc import Mapping

from ...util.text import apart
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["ONE_BATCH", "overfits_one_batch"]

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
