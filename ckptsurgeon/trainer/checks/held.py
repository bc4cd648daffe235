"""What is frozen is what it was, bit for bit, and the optimiser keeps nothing of it."""

from __future__ import annotations

from ...util.text import count, listing
from ..loop.loop import TrainingLoop
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["frozen_unchanged"]


def frozen_unchanged(loop: TrainingLoop) -> Check:
    """Compare frozen parameters and buffers with what they were before the first step (or before they thawed)."""
    name = "frozen tensors did not move"
    freezing, step = loop.freezing, max(loop.standing.step - 1, 0)
    frozen = freezing.frozen(step)
    ever = freezing.frozen(0)
    if not ever:
        return Check(name, NOT_RUN, "nothing is frozen")
    moved = list(dict.fromkeys([*freezing.moved, *freezing.changed(frozen)]))
    if moved:
        return Check(name, FAIL, f"{count(len(moved), 'tensor')} of {len(ever)} did: {listing(moved, where='')}")
    stateful = [key for key in frozen if loop.optimizer.has_state(key)]
    if stateful:
        return Check(name, FAIL, f"the optimiser has state for {listing(stateful, where='')}")
    thawed = f", {len(ever) - len(frozen)} thawed since" if len(ever) > len(frozen) else ""
    return Check(name, PASS, f"{len(ever)} of {len(ever)}, bit for bit{thawed}")
