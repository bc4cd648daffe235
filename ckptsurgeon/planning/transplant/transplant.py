"""The transplant planner: makes a plan from sources, a destination and rules, by headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...tensors.dtypes import DTYPES
from ...tensors.quantised.encoding import NO_CODES, QuantisedTensors
from ...util.text import count, human_bytes, listing
from ..plan.files import PlanSource, PlanTarget
from ..plan.plan import Plan
from ..plan.step import Step
from ..quantised import check_decoded, check_replaced
from ..target import TargetSpec
from .decide import InitialView, decide
from .options import Options
from .plan_errors import check_completeness, check_destination_patterns, check_prefixes, nothing_loaded
from .plan_notes import few_copied, other_modules
from .select import Selection, SourceView, TensorOrigin, select

__all__ = ["plan_transplant"]

DOUBLING = 1.9
"""There is a note if casts make the copied tensors larger by this factor or more."""


def plan_transplant(
    views: Sequence[SourceView],
    target: TargetSpec,
    options: Options,
    *,
    planned: PlanTarget,
    keeper: PlanSource | None = None,
    initial: Sequence[InitialView] = (),
    wanted: QuantisedTensors = NO_CODES,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a transplant of the sources ``views`` into ``target``; later sources override earlier ones.

    ``planned`` describes the destination in the plan. ``keeper`` is the destination if it is a checkpoint: tensors that
    are in no source keep its values. ``initial`` are files that contain initial values of some tensors. ``wanted`` are
    the quantised tensors of the destination. Raises PatternError for patterns that match nothing; PlanError for
    impossible requests; FormatError for values that cannot be copied.
    """
    names_tensors = options.reinit or options.require or options.mismatch.scoped
    overlooked = check_destination_patterns(target, options) if names_tensors else []
    if any(view.dst for view in views):
        check_prefixes(views, target)
    selection = select(views, options)
    names = [view.source.name for view in views]
    decisions = decide(target, selection, options, names, initial)
    unexpected = _unexpected(selection, decisions.used)
    if any(view.codes for view in views):
        check_decoded(decisions.steps, selection, views)
    if wanted:
        check_replaced(decisions.steps, selection, views, wanted)
    if all(step.reason for step in decisions.steps):  # no tensor gets values from a source
        raise nothing_loaded(decisions.steps, unexpected, target, views)
    if options.require or options.strict or options.on_missing == "error":
        check_completeness(decisions.steps, unexpected, options)
    kept = (keeper,) if keeper is not None else tuple(view.source for view in initial)
    few = list(few_copied(views, decisions.steps, unexpected, options)) if unexpected else []
    others = not few and unexpected
    return Plan(
        verb="transplant",
        sources=(*(view.source for view in views), *kept),
        target=planned,
        steps=tuple(decisions.steps),
        unexpected=tuple((origin.source, origin.key) for origin in unexpected),
        excluded=selection.excluded_keys,
        equal=tuple(decisions.equal),
        rows=next((step.rows for step in decisions.steps if step.rows is not None), None),
        seed=seed,
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(
            *notes,
            *selection.notes,
            *overlooked,
            *decisions.notes,
            *_overrides(selection, decisions.used),
            *_idle_copies(selection, decisions.used),
            *_growth(decisions.steps),
            *few,
            *(other_modules(views, decisions.steps, _names(selection, unexpected), options) if others else ()),
        ),
    )


def _unexpected(selection: Selection, used: set[str]) -> list[TensorOrigin]:
    """Return the selected tensors that the destination does not have under any of their new names.

    ``used`` are the names of destination tensors that a source has, too.
    """
    placed = {(origin.source, origin.key) for name in used for origin in selection.origins.get(name, ())}
    left = {(o.source, o.key): o for name, found in selection.origins.items() if name not in used for o in found}
    return [origin for place, origin in left.items() if place not in placed]


def _names(selection: Selection, unexpected: Sequence[TensorOrigin]) -> list[str]:
    """Return the new names of the source tensors ``unexpected``, which the destination lacks."""
    places = {(origin.source, origin.key) for origin in unexpected}
    return [name for name, found in selection.origins.items() if any((one.source, one.key) in places for one in found)]


def _idle_copies(selection: Selection, used: set[str]) -> list[str]:
    """Return a list with a note on copies of used tensors that rules make under names that the destination lacks.

    The list is empty if there are no such copies. ``used`` are the names of destination tensors that a source has, too.
    """
    placed = {(origin.source, origin.key) for name in used for origin in selection.origins.get(name, ())}
    idle = [
        name
        for name, origins in selection.origins.items()
        if name not in used and any((origin.source, origin.key) in placed for origin in origins)
    ]
    if not idle:
        return []
    copies = count(len(idle), "copy", "copies")
    are = "is" if len(idle) == 1 else "are"
    return [f"{copies} that rules make of used tensors {are} not in the destination: {listing(idle)}"]


def _overrides(selection: Selection, used: set[str]) -> list[str]:
    twice = [name for name in selection.origins if name in used and len(selection.origins[name]) > 1]
    if not twice:
        return []
    return [f"{count(len(twice), 'tensor')} in several sources come from the last of them: {listing(twice)}"]


def _growth(steps: Sequence[Step]) -> list[str]:
    """Return a list with a note if casts make the tensors ``DOUBLING`` times as large or more; else an empty list."""
    before = after = 0
    kinds: set[str] = set()
    for step in steps:
        if step.kind == "cast":
            elements = 1
            for size in step.shape:
                elements *= size
            before += elements * DTYPES[step.source_dtype].bits // 8
            after += elements * DTYPES[step.dtype].bits // 8
            kinds.add(f"{step.source_dtype} to {step.dtype}")
    if not before or after < DOUBLING * before:
        return []
    casts = ", ".join(sorted(kinds))
    growth = f"enlarges tensors from {human_bytes(before)} to {human_bytes(after)}"
    return [f"casting {casts} {growth}; --dtype keep leaves them as they are"]
