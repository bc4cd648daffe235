"""The memory that it takes to compute a tensor, and how many blocks of it that lets be computed at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ...planning.plan.step import Step
from ..run.context import MergeContext
from .adapting import adapting_bytes, kept_bytes
from .factoring import factoring_bytes
from .merge_inputs import merging_bytes
from .part import Place

__all__ = ["Need", "check_memory", "need_of", "threads_of"]

THREADS = min(8, len(os.sched_getaffinity(0)))
"""As many as the machine has cores, up to where the disk is the limit."""


@dataclass(frozen=True)
class Need:
    """Bytes of memory: what is ``kept`` while a tensor is computed, and what each ``block`` takes; and why."""

    block: int
    why: str
    kept: int = 0

    @property
    def least(self) -> int:
        """What it takes to compute one block at a time."""
        return self.kept + self.block


def need_of(step: Step, places: Sequence[Place]) -> Need | None:
    """Return what a tensor takes, None where that is no more than copying."""
    if step.op == "merge":
        return Need(merging_bytes(step, places), "the method needs a slice of all models at once")
    if step.op == "lora":
        why = "its adapters' factors and a block of rows are held at once"
        return Need(adapting_bytes(step, places), why, kept_bytes(step))
    if step.op == "factor":
        return Need(factoring_bytes(step), "the best factors of a difference are found in blocks of its rows")
    return None


def check_memory(step: Step, places: Sequence[Place], context: MergeContext) -> None:
    """Raise PlanError where a tensor cannot be computed in the memory there is, one block at a time."""
    need = need_of(step, places)
    if need is not None:
        hint = ", or use another method for it" if step.op == "merge" else ""
        context.check(step, need.least, need.why, hint)


def threads_of(step: Step, places: Sequence[Place], context: MergeContext) -> int:
    """Return how many blocks are computed at once: as many as there are cores, and as the memory holds."""
    need = need_of(step, places)
    if len(places) < 2 or need is None:
        return THREADS if len(places) > 1 else 1
    return max(1, min(THREADS, (context.memory - need.kept) // max(1, need.block)))
