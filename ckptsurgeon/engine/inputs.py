"""Defines the open inputs of a plan: its sources, its target, and the limits for computing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FormatError
from ..util.brief import Brief

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..methods.merge._method import Method
    from ..planning.plan.plan import Plan
    from ..planning.target import TargetSpec
    from ..planning.transplant.select import PlanningInputs

__all__ = ["PlanInputs", "keeping"]


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

    @property
    def is_remote(self) -> bool:
        """Whether the bytes of a source must be fetched, because it is at an address."""
        return any(file.remote for source in self.sources for file in source.open_files().values())

    def keeper(self, plan: Plan) -> Checkpoint | None:
        """Return the destination if it is a checkpoint; None if it is anything else, such as a configuration.

        Tensors that no source contains keep their values from this checkpoint.
        """
        opened = zip(plan.sources, self.sources, strict=False)  # a live module is a source without a checkpoint
        return next((one for source, one in opened if source.role == "destination"), None)


@contextmanager
def keeping(inputs: PlanInputs) -> Iterator[None]:
    """Keep the fetched bytes if the ``with`` block fails, so that the next run does not have to fetch them again.

    If the block raises FormatError, the bytes are not kept, since they may be wrong.
    """
    _keep(inputs, True)
    try:
        yield
    except FormatError:
        _keep(inputs, False)
        raise
    _keep(inputs, False)


def _keep(inputs: PlanInputs, wanted: bool) -> None:
    for checkpoint in inputs.sources:
        for file in checkpoint.open_files().values():
            file.keep(wanted)
