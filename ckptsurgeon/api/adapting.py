"""Sources whose keys a destination knows under older names: adapted to it, as it says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint
from ..errors import PlanError
from ..plan import Plan
from ..sources import SourceSpec
from ..target import Adapted, TargetSpec
from ..text import listing
from .operating import Operated, operate

__all__ = ["AdaptedSource", "adapt", "check_converted"]


@dataclass(frozen=True)
class AdaptedSource:
    """A source after all operations, and what its destination knows of its names."""

    operated: Operated
    adapted: Adapted = field(default_factory=Adapted)


def adapt(
    raw: Sequence[Checkpoint], operated: Sequence[Operated], specs: Sequence[SourceSpec], target: TargetSpec
) -> list[AdaptedSource]:
    """Return the sources as a destination knows them; one whose spec says where it goes is left as it is.

    ``raw`` are the sources before the operations that made them what they are.
    """
    return [
        _adapted(checkpoint, one, target) if not (spec.src or spec.dst) else AdaptedSource(one)
        for checkpoint, one, spec in zip(raw, operated, specs, strict=True)
    ]


def _adapted(raw: Checkpoint, one: Operated, target: TargetSpec) -> AdaptedSource:
    if target.adapt is None:
        return AdaptedSource(one)
    adapted = target.adapt(one.checkpoint)
    if adapted.operations:
        one = operate([raw], [*one.rows, *adapted.operations])[0]
    return AdaptedSource(one, adapted)


def check_converted(plan: Plan, sources: Sequence[AdaptedSource]) -> None:
    """Raise PlanError for tensors that are drawn although a source has what they would be made of."""
    unknown: Mapping[str, str] = {key: why for one in sources for key, why in one.adapted.unknown.items()}
    lost = [step.key for step in plan.steps if step.reason == "missing" and step.key in unknown]
    if lost:
        raise PlanError(
            f"{listing(lost)} would be made of older tensors of the source, but {unknown[lost[0]]}.",
            hint="Convert it with transformers first (from_pretrained, save_pretrained), or --reinit them.",
            details=lost,
        )
