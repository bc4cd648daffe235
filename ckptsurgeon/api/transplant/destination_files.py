"""Opens the files of a destination that are further sources of a plan: its own values, and initial values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...planning.plan.files import PlanSource
from ...planning.plan.plan import Plan
from ...planning.target import TargetSpec
from ...planning.transplant.decide import InitialView
from ...tensors.composition import is_decoded
from ...tensors.info import TensorInfo
from ..inputs.argument_types import CheckpointLike
from ..inputs.encoding import ENCODINGS, decoded, read_as
from ..inputs.inputs import names_of, plan_source
from ..model_folder.quantised import decoded_dtype

__all__ = ["decoded_target", "initial_views", "keeper_of", "used"]


def decoded_target(target: TargetSpec, encoding: str) -> TargetSpec:
    """Return a destination with the decoded tensors of its checkpoint; unchanged if it is not a quantised checkpoint.

    ``encoding`` is the encoding of the output: for "keep", tensors that only go with codes are kept.

    Raises PlanError if a tensor cannot be decoded.
    """
    if target.kind == "module" or not target.keeps:
        return target
    with _kept(target) as opened:
        checkpoint = decoded(opened) if encoding == ENCODINGS[0] and opened.codes else read_as(opened, encoding)
        if checkpoint.stored is None:
            return target
        dtype = decoded_dtype(checkpoint)
        dtypes = {key: info.dtype for key, info in checkpoint.items() if is_decoded(info)}
        tensors = {key: TensorInfo(dtype if key in dtypes else one.dtype, one.shape) for key, one in checkpoint.items()}
        return replace(target, tensors=tensors, ties=dict(checkpoint.ties), decoded=dtypes)


def keeper_of(target: TargetSpec, names: Sequence[str], opened: list[Checkpoint], encoding: str) -> PlanSource | None:
    """Return the destination as a further source of the plan: tensors that no other source has keep their values.

    Opens its file and appends it to ``opened``. Returns None for a destination without values. ``names`` are the names
    of the other sources.
    """
    if target.kind == "module":
        return PlanSource(target.name, "", "", (), (), "destination")
    if not target.keeps:
        return None
    opened.append(_kept(target))
    opened[-1] = decoded(opened[-1]) if encoding != ENCODINGS[0] and opened[-1].codes else opened[-1]
    return plan_source(names_of([*names, target.keeps])[-1], opened[-1], role="destination")


def initial_views(target: TargetSpec, names: list[str], given: list[Checkpoint]) -> list[InitialView]:
    """Return the files with initial values for a destination's tensors (``target.given``) as further sources.

    Opens these files and appends them to ``given``. ``names`` are the names of the other sources of the plan.
    """
    views = []
    for file in target.given:
        given.append(open_checkpoint(file.path, file.root, unwrap=False).unwrapped(stripped=file.stripped))
        names = [*names, names_of([*names, file.path])[-1]]
        views.append(InitialView(plan_source(names[-1], given[-1], role="initial"), given[-1], file))
    return views


def used(plan: Plan, views: Sequence[InitialView], given: Sequence[Checkpoint]) -> tuple[Plan, list[Checkpoint]]:
    """Return the plan without files of initial values that no step reads, and the files that remain.

    The removed files are closed. A step reads a file if it copies a tensor from it, or if it fills the part of a tensor
    that a smaller source tensor does not cover.
    """
    first = len(plan.sources) - len(views)
    filled = {step.key for step in plan.steps if step.overlays}
    read = {step.source for step in plan.steps}
    read |= {place for place, view in enumerate(views, first) if not filled.isdisjoint(view.file.keys)}
    places = [place for place in range(first, len(plan.sources)) if place in read]
    moved = {place: first + number for number, place in enumerate(places)}
    for place, checkpoint in enumerate(given, first):
        if place not in moved:
            checkpoint.close()
    steps = plan.steps
    if len(places) < len(views):
        steps = tuple(replace(one, source=moved.get(one.source or 0, one.source)) for one in steps)
    sources = (*plan.sources[:first], *(plan.sources[place] for place in places))
    return replace(plan, sources=sources, steps=steps), [given[place - first] for place in places]


def _kept(target: TargetSpec) -> Checkpoint:
    """Open the checkpoint whose values a destination keeps: the object ``kept``, if set, else the file ``keeps``."""
    given = cast("CheckpointLike", target.kept) if target.kept is not None else target.keeps
    return open_checkpoint(given, target.keeps_root or ".", unwrap=False)
