"""Sources as their destination knows them: after the operations of the user, then after those that it adds itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.operations.conversions import layouts_known
from ...planning.plan.plan import Plan
from ...planning.target import Recognised, TargetSpec
from ...planning.transplant.spec import moved
from ...storage.read.spec import SourceSpec
from ...util.text import grouped
from ..inputs.operations import Operated, operate

__all__ = ["KnownSource", "check_converted", "recognised"]

LOST = "{names} would be made of older tensors of the source, but {why}"


@dataclass(frozen=True)
class KnownSource:
    """A source after all operations, and what its destination recognised in it."""

    operated: Operated
    recognised: Recognised = field(default_factory=Recognised)


def recognised(
    raw: Sequence[Checkpoint], rows: Sequence[Mapping[str, Any]], specs: Sequence[SourceSpec], target: TargetSpec
) -> list[KnownSource]:
    """Return the sources after the operations ``rows``, and what the destination recognises in what these leave."""
    return [
        _recognised(checkpoint, one, spec, target)
        for checkpoint, one, spec in zip(raw, operate(raw, rows), specs, strict=True)
    ]


def _recognised(raw: Checkpoint, one: Operated, spec: SourceSpec, target: TargetSpec) -> KnownSource:
    recognise = target.recognise or layouts_known(target.tensors)
    if recognise is None:
        return KnownSource(one)
    found = recognise(one.checkpoint)
    if found.operations:
        one = operate([raw], [*one.rows, *found.operations])[0]
    return KnownSource(one, _under(found, one.checkpoint, spec, target) if spec.src or spec.dst else found)


def _under(found: Recognised, source: Checkpoint, spec: SourceSpec, target: TargetSpec) -> Recognised:
    """Return what holds of a source whose spec says where it goes: names in that place, where the spec meets none."""
    names = {
        key: name
        for key, name in found.names.items()
        if key in source and _within(name, spec.dst) and moved(key, spec.src, spec.dst) not in target.tensors
    }
    unknown = {key: why for key, why in found.unknown.items() if _within(key, spec.dst)}
    notes = found.notes if names or found.operations else ()
    return Recognised(found.operations, names, found.by, unknown, notes)


def _within(key: str, module: str) -> bool:
    return bool(module) and key.startswith(f"{module}.")


def check_converted(plan: Plan, sources: Sequence[KnownSource]) -> None:
    """Raise PlanError for tensors that are drawn although a source has what they would be made of."""
    unknown: Mapping[str, str] = {key: why for one in sources for key, why in one.recognised.unknown.items()}
    lost = [step.key for step in plan.steps if step.reason == "missing" and step.key in unknown]
    if lost:
        raise PlanError(
            f"{grouped([(key, unknown[key]) for key in lost], LOST)}.",
            hint="Convert it with transformers first (from_pretrained, save_pretrained), or --reinit them.",
            details=lost,
        )
