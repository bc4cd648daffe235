"""What makes a folder more than its weights: the small files beside them, and the names that it may leave out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from ..errors import PlanError, SourceError
from ..plan import Plan, PlanCompanion
from ..recipe import Recipe
from ..text import escape, listing
from .folders import StagedFolder
from .layout import OutputOptions, is_folder, writer_of

__all__ = ["all_checksums", "as_written", "copy_companions", "recipe_as_written", "told_companions"]

BLOCK = 1 << 20


def as_written(plan: Plan, options: OutputOptions) -> Plan:
    """Return a plan with just what its output will hold: of tied tensors without the names that are implied there.

    Where the first name is one of them, the next one takes its place. Other files than folders have no companions.
    """
    writer = writer_of(options)
    if not is_folder(options) or not writer.suffixes:
        return replace(plan, target=replace(plan.target, companions=(), implied=()))
    implied = () if writer.shares else plan.target.implied
    first: dict[str, str] = {}
    steps = []
    for step in plan.steps:
        if step.key not in implied:
            owner = first.setdefault(step.tied_to or step.key, step.key)
            steps.append(replace(step, tied_to="" if owner == step.key else owner))
    return replace(plan, steps=tuple(steps), target=replace(plan.target, implied=implied))


def recipe_as_written(recipe: Recipe, plan: Plan) -> Recipe:
    """Return a recipe that says of each name whether it is in the output of ``plan``, and which files are beside."""
    written = {step.key for step in plan.steps}
    tensors = {key: replace(made, implied=key not in written) for key, made in recipe.tensors.items()}
    return replace(recipe, tensors=tensors, target=replace(recipe.target, companions=plan.target.companions))


def all_checksums(plan: Plan, checksums: Mapping[str, int]) -> dict[str, int]:
    """Return the checksum of every name of a plan: tied ones have that of whichever was written."""
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
    staged = folder.file(companion.name, companion.size)
    digest, done = hashlib.sha256(), 0
    try:
        with open(companion.path, "rb") as file:
            while (data := file.read(BLOCK)) and done + len(data) <= companion.size:
                digest.update(data)
                staged.write(done, data)
                done += len(data)
    except OSError as error:
        raise SourceError(f"{escape(companion.path)} cannot be read: {error.strerror}.") from error
    if data or digest.hexdigest() != companion.sha256:
        raise PlanError(f"{escape(companion.path)} has changed since the plan.", hint="Plan again.")


def told_companions(plan: Plan) -> tuple[str, ...]:
    """Say which files went beside the weights, and which names are left out."""
    notes = []
    if plan.target.companions:
        notes.append(f"beside the weights: {listing([one.name for one in plan.target.companions], 12, where='')}")
    if plan.target.implied:
        names = listing(plan.target.implied, 3, where="")
        notes.append(f"tied, and left to the reader of the folder to tie again: {names}")
    return tuple(notes)
