"""Recognises the layouts of the sources of a transplant, and converts the sources to the destination's layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.operations.conversions import layouts_known
from ...planning.plan.plan import Plan
from ...planning.target import KnownLayout, TargetSpec
from ...planning.transplant.select import renamed_by_spec
from ...storage.read.spec import SourceSpec
from ...util.text import grouped
from ..inputs.operations import OperatedCheckpoint, operate
from ..layouts.changed_layout import layout_for
from ..model_folder.folder import ModelFolder, model_folder, model_folder_at

__all__ = ["KnownSource", "check_converted", "recognised"]

# Sources after the user's operations, and then after the operations for their recognised layout.

LOST = "{names} must be converted from the older layout of the source, but {why}"


@dataclass(frozen=True)
class KnownSource:
    """A source after all operations on its tensors, and the layout (such as older names) that was recognised in it.

    The layout says how the source's tensors are renamed and converted to become the destination's tensors.
    """

    operated: OperatedCheckpoint
    recognised: KnownLayout = field(default_factory=KnownLayout)


def recognised(
    raw: Sequence[Checkpoint],
    rows: Sequence[Mapping[str, Any]],
    specs: Sequence[SourceSpec],
    target: TargetSpec,
    layout: str,
    heads: str,
) -> list[KnownSource]:
    """Return the sources ``raw`` after the operations ``rows``, each with the layout that is then recognised in it.

    ``specs`` says, for each source, from which module the tensors are read and into which module they go. ``layout`` is
    the layout to which they are converted ("auto" means the destination's layout), and ``heads`` is the value of
    ``--heads``.
    """
    return [
        _recognised(checkpoint, one, spec, target, layout, heads)
        for checkpoint, one, spec in zip(raw, operate(raw, rows), specs, strict=True)
    ]


def _recognised(
    raw: Checkpoint, one: OperatedCheckpoint, spec: SourceSpec, target: TargetSpec, layout: str, heads: str
) -> KnownSource:
    found = layout_for(
        layout,
        one,
        target.tensors,
        lambda: model_folder(raw).config,
        lambda: _config_of(target),
        heads,
        reads_older=target.recognise is not None,
    )
    recognise = target.recognise or layouts_known(target.tensors)
    if found is None and recognise is None:
        return KnownSource(one)
    if found is None:
        assert recognise is not None
        found = recognise(one.checkpoint)
    one = one.further(found.operations, found.derived)
    return KnownSource(one, _under(found, one.checkpoint, spec, target) if spec.src or spec.dst else found)


def _config_of(target: TargetSpec) -> Mapping[str, Any]:
    """Return the fields of a destination's config.json; {} if it has none."""
    beside = model_folder_at(target.keeps).config if os.path.isdir(target.keeps) else {}
    return ModelFolder("", target.companions).config or beside


def _under(found: KnownLayout, source: Checkpoint, spec: SourceSpec, target: TargetSpec) -> KnownLayout:
    """Return the part of a recognised layout for the destination's module ``spec.dst``.

    The source is loaded into this module.
    """
    names = {
        key: name
        for key, name in found.names.items()
        if key in source and _within(name, spec.dst) and renamed_by_spec(key, spec.src, spec.dst) not in target.tensors
    }
    unknown = {key: why for key, why in found.unknown.items() if _within(key, spec.dst)}
    notes = found.notes if names or found.operations else ()
    return KnownLayout(found.operations, names, found.by, unknown, notes)


def _within(key: str, module: str) -> bool:
    return bool(module) and key.startswith(f"{module}.")


def check_converted(plan: Plan, sources: Sequence[KnownSource]) -> None:
    """Raise PlanError if tensors would be initialised although a source has their values in an unsupported layout."""
    unknown: Mapping[str, str] = {key: why for one in sources for key, why in one.recognised.unknown.items()}
    lost = [step.key for step in plan.steps if step.reason == "missing" and step.key in unknown]
    if lost:
        raise PlanError(
            f"{grouped([(key, unknown[key]) for key in lost], LOST)}.",
            hint="Convert the source with transformers (from_pretrained, save_pretrained), or initialise these "
            "tensors with --reinit.",
            details=lost,
        )
