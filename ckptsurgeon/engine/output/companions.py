"""What makes a folder more than its weights: the small files beside them, and the names that it may leave out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from ...checkpoint.quantisation import SETTINGS, settings_among, settings_in
from ...errors import CheckpointError, PlanError, SourceError
from ...planning.plan.plan import Plan, PlanCompanion
from ...planning.recipe.recipe import Recipe
from ...storage.json_text import read_json
from ...storage.read._links import leads_out
from ...storage.read.base import File
from ...storage.read.small import read_small
from ...storage.read.uri import open_source
from ...storage.write.folders import StagedFolder
from ...util.text import escape, listing
from .layout import OutputOptions, is_adapter, is_folder, writer_of

__all__ = ["all_checksums", "as_written", "copy_companions", "recipe_as_written", "told_companions"]

BLOCK = 1 << 20
ADAPTER = "adapter_config.json"


def as_written(plan: Plan, options: OutputOptions) -> Plan:
    """Return a plan with just what its output will hold: of tied tensors without the names that are implied there.

    Where the first name is one of them, the next one takes its place. A single file has no companions, nor notes on
    them; an adapter that is not written as one file of safetensors has no configuration that PEFT would look for.
    """
    writer = writer_of(options)
    plan = _without_weights(plan, options)
    if not is_folder(options):
        notes = tuple(note for note in plan.notes if note not in plan.target.notes)
        return replace(plan, target=replace(plan.target, companions=(), implied=(), notes=()), notes=notes)
    plan = _without_settings(plan)
    implied = () if writer.shares or not writer.suffixes else plan.target.implied
    first: dict[str, str] = {}
    steps = []
    for step in plan.steps:
        if step.key not in implied:
            owner = first.setdefault(step.tied_to or step.key, step.key)
            tied_to = "" if owner == step.key else owner
            steps.append(step if step.tied_to == tied_to else replace(step, tied_to=tied_to))
    return replace(plan, steps=tuple(steps), target=replace(plan.target, implied=implied))


def _without_settings(plan: Plan) -> Plan:
    """Return the plan of a folder without the settings of quantisation in its metadata, if its files say the same."""
    if SETTINGS not in plan.metadata:
        return plan
    files = {one.name: one for one in plan.target.companions}
    if settings_among(files, lambda name: _document(files[name])) != settings_in(plan.metadata):
        return plan
    return replace(plan, metadata={name: value for name, value in plan.metadata.items() if name != SETTINGS})


def _document(companion: PlanCompanion) -> Any:
    with suppress(ValueError, CheckpointError):
        return read_json(companion.text or read_small(companion.path))
    return None


def _without_weights(plan: Plan, options: OutputOptions) -> Plan:
    """Return the plan of an adapter that is carried along as any checkpoint, if its output cannot be an adapter."""
    made = any(step.op == "factor" for step in plan.steps)  # then an output that is none is an error
    if made or not plan.target.weights or is_adapter(options):
        return plan
    kept = tuple(one for one in plan.target.companions if one.name != ADAPTER)
    return replace(plan, target=replace(plan.target, companions=kept, weights=""))


def recipe_as_written(recipe: Recipe, plan: Plan) -> Recipe:
    """Return a recipe that says of each name whether it is in the output of ``plan``, and what is beside them."""
    tensors = recipe.tensors
    if plan.target.implied:
        written = {step.key for step in plan.steps}
        tensors = {key: made._replace(implied=key not in written) for key, made in tensors.items()}
    target = replace(recipe.target, companions=plan.target.companions)
    return replace(recipe, tensors=tensors, target=target, metadata=plan.metadata)


def all_checksums(plan: Plan, checksums: Mapping[str, int]) -> Mapping[str, int]:
    """Return the checksum of every name of a plan: tied ones have that of whichever was written."""
    if not any(step.tied_to for step in plan.steps):
        return checksums
    found = {step.tied_to or step.key: checksums[step.key] for step in plan.steps if step.key in checksums}
    return {step.key: found[step.tied_to or step.key] for step in plan.steps}


def copy_companions(plan: Plan, folder: StagedFolder) -> None:
    """Write the companions of a plan; raises PlanError where a file is no longer what it was."""
    for companion in plan.target.companions:
        if companion.path:
            _copy(companion, folder)
        else:
            folder.write(companion.name, companion.text.encode())


def _copy(companion: PlanCompanion, folder: StagedFolder) -> None:
    if leads_out(companion.path):
        raise PlanError(f"{escape(companion.path)} is a link out of its folder, which is not followed.")
    source = open_source(companion.path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(companion.path)} is a folder.")
    digest = hashlib.sha256()
    with closing(source) as file:
        if companion.is_read and companion.size != file.size:
            raise _changed(companion)
        staged = folder.file(companion.name, file.size)
        for done in range(0, file.size, BLOCK):
            data = file.read(done, min(BLOCK, file.size - done))
            digest.update(data)
            staged.write(done, data)
    if companion.is_read and companion.sha256 != digest.hexdigest():
        raise _changed(companion)
    companion.is_found(source.size, digest.hexdigest())


def _changed(companion: PlanCompanion) -> PlanError:
    return PlanError(f"{escape(companion.path)} has changed since the plan.", hint="Plan again.")


def told_companions(plan: Plan) -> tuple[str, ...]:
    """Say which files went beside the weights, and which names are left out."""
    notes = []
    if plan.target.companions:
        notes.append(f"beside the weights: {listing([one.name for one in plan.target.companions], 12, where='')}")
    if plan.target.implied:
        names = listing(plan.target.implied, 3, where="")
        notes.append(f"tied, and left to the reader of the folder to tie again: {names}")
    return tuple(notes)
