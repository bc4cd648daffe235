"""Defines the open inputs of a plan: its sources, its target, and the limits for computing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..util.short_repr import Brief

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..methods.merge._method import Method
    from ..planning.target import TargetSpec
    from ..planning.transplant.transplant import PlanningInputs

__all__ = ["PlanInputs"]


@dataclass(frozen=True, repr=False)
class PlanInputs(Brief):
    """The open sources of a plan, in the order of the plan, and ``target``, the model that the output is made for.

    ``others`` are other files that were read and must not be overwritten. ``planning`` are the inputs from which a
    transplant was planned; ``explain`` uses them. ``plugins`` are the user's merge methods, ``memory`` is the memory
    limit in bytes for computing a tensor, ``threads`` the largest number of threads for it (0: the defaults).
    """

    sources: Sequence[Checkpoint] = ()
    target: TargetSpec | None = None
    others: tuple[str, ...] = ()
    planning: PlanningInputs | None = None
    plugins: tuple[Method, ...] = ()
    memory: int = 0
    threads: int = 0
