"""What is trained had a gradient, and moved, neither too little nor too far."""

from __future__ import annotations

import statistics

from ...util.text import count, escape, listing
from ..loop.loop import TrainingLoop
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["trained_tensors_moved", "update_sizes"]

MIN_UPDATE, MAX_UPDATE = 1e-6, 0.1
"""How far a step may move a tensor, as a share of its norm: 1e-3 is usual."""


def trained_tensors_moved(loop: TrainingLoop) -> Check:
    """Find trained tensors that no gradient reached, or that are what they were."""
    name = "trained tensors moved"
    if not loop.standing.step:
        return Check(name, NOT_RUN, "no step was taken")
    frozen = set(loop.freezing.frozen(loop.standing.step - 1))
    learned = {key: seen for key, seen in loop.optimizer.learned().items() if key not in frozen}
    without = [key for key, seen in learned.items() if not seen]
    if without:
        return Check(name, FAIL, f"{count(len(without), 'tensor')} never had a gradient: {listing(without, where='')}")
    still = set(learned) - set(loop.freezing.changed(list(learned)))
    if still:
        return Check(name, FAIL, f"{count(len(still), 'tensor')} did not move: {listing(sorted(still), where='')}")
    return Check(name, PASS, f"{len(learned)} of {len(learned)}, each had a gradient")


def update_sizes(loop: TrainingLoop) -> Check:
    """Look at how far the last step that was measured moved each tensor."""
    name = "update to weight"
    frozen = set(loop.freezing.frozen(max(loop.standing.step - 1, 0)))
    ratios = {key: ratio for key, ratio in loop.standing.ratios.items() if key not in frozen and ratio > 0}
    if not ratios:
        return Check(name, NOT_RUN, "no step was measured")
    middle = statistics.median(ratios.values())
    largest = max(ratios, key=lambda key: ratios[key])
    says = f"median {middle:.1e}, most {ratios[largest]:.1e} ({escape(largest)})"
    return Check(name, PASS if MIN_UPDATE <= middle <= MAX_UPDATE else WARN, says)
