"""The open inputs of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..util.brief import Brief

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..methods.merge._method import Method
    from ..planning.plan.plan import Plan
    from ..planning.target import TargetSpec
    from ..planning.transplant.select import PlanningInputs

__all__ = ["PlanInputs"]


@dataclass(frozen=True, repr=False)
class PlanInputs(Brief):
    """The sources of a plan, open and in its order, and its destination.

    ``others`` are files that were read and must not be overwritten. ``planning`` is what a transplant was planned from,
    for ``explain``. ``plugins`` are the user's own merge methods, ``memory`` the bytes that a merge may use
    (0: not given).
    """

    sources: Sequence[Checkpoint] = ()
    target: TargetSpec | None = None
    others: tuple[str, ...] = ()
    planning: PlanningInputs | None = None
    plugins: tuple[Method, ...] = ()
    memory: int = 0

    def keeper(self, plan: Plan) -> Checkpoint | None:
        """Return the destination if it is a checkpoint, whose own values are kept."""
        opened = zip(plan.sources, self.sources, strict=False)  # a live module is a source without a checkpoint
        return next((one for source, one in opened if source.role == "destination"), None)
