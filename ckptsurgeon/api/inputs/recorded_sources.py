"""Finds inputs that are sources of other inputs, according to the recipes in the inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...formats.base.header import FilePrint
from ...planning.plan.files import PlanSource, given_sources
from ...planning.recipe import Recipe, folder_of_recipe
from ...util.text import escape
from .stored_recipes import changed_tensor, stored_recipe, weights_of

__all__ = ["counted_notes", "swapped_notes"]

COPIES, MIXES = ("convert", "filter", "rename"), ("average", "merge")
"""Verbs whose output has the weights of its only source, and verbs whose output mixes the weights of its sources."""


def counted_notes(opened: Sequence[Checkpoint]) -> list[str]:
    """Return notes on inputs whose weights count twice: the recipe of another input says that it was made from them.

    The base of a merge is not counted as a source, because the output of a merge is often interpolated with the base.
    """
    recipes = [(one, recipe) for one in opened if (recipe := stored_recipe(one)) is not None]
    told = [(one, recipe) for one, recipe in recipes if recipe.verb in (*COPIES, *MIXES)]
    return list(
        dict.fromkeys(
            f"{escape(source.path)} is also a source of {escape(one.path)}, according to the recipe there: its "
            "weights count twice"
            for one, recipe in told
            for source in opened
            if source is not one and _is_source(source, one, recipe) and not changed_tensor(one)
        )
    )


def swapped_notes(tuned: Checkpoint, base: Checkpoint) -> list[str]:
    """Return a note if the recipe of ``base`` says that it was made from ``tuned``: the two are probably swapped.

    There is a note only if ``base`` is ``tuned`` plus adapters (``lora merge``), or plus the weight changes of other
    models (``merge``). Other verbs may rightly make a base from a tuned model, for example by quantising it.
    """
    recipe = stored_recipe(base)
    if recipe is None or not _is_made(base, tuned, recipe) or changed_tensor(base):
        return []
    ours, theirs = escape(tuned.path), escape(base.path)
    return [
        f"{theirs} was made from {ours} by {recipe.verb}, according to its recipe: the adapter would undo that "
        f"change; for an adapter that makes it, give {theirs} as the tuned model and {ours} as the base"
    ]


def _is_made(made: Checkpoint, base: Checkpoint, recipe: Recipe) -> bool:
    """Return whether ``made`` is ``base`` plus adapters, or plus the weight changes of other models.

    ``recipe`` is the recipe in ``made``.
    """
    if recipe.verb == "merge":
        named = [one for one in recipe.sources if one.name == recipe.arguments.get("base")]
        return any(_is_source_of(base, made, one) for one in named)
    weights = weights_of(recipe.arguments, len(given_sources(recipe.sources)) - 1)
    adds = max(weights, default=1.0) > 0  # not if adapters are only subtracted, to undo their merge
    return recipe.verb == "lora merge" and adds and any(_is_source_of(base, made, one) for one in recipe.sources[:1])


def _is_source(source: Checkpoint, one: Checkpoint, recipe: Recipe) -> bool:
    """Return whether ``one`` was made from ``source``, according to the recipe in ``one``.

    The base of a merge does not count as a source. The result is False if ``one`` was merged by a recipe of mergekit,
    because such a merge may use only some layers of a model.
    """
    if "recipe" in recipe.arguments:
        return False
    base = recipe.arguments.get("base")
    rest = [each for each in given_sources(recipe.sources) if each.role == "source" and each.name != base]
    return any(_is_source_of(source, one, each) for each in rest)


def _is_source_of(source: Checkpoint, one: Checkpoint, recorded: PlanSource) -> bool:
    """Return whether the input ``source`` is the source ``recorded`` in the recipe of ``one``.

    The paths, sizes and header digests of the files are compared. A training run may overwrite a checkpoint without
    changing any of these, so the result is False if a file of the input is newer than the files of ``one``.
    """
    if source.in_memory or not recorded.path or source.root != recorded.root or _is_newer(source, one):
        return False
    return _prints(recorded.path, recorded.files, folder_of_recipe(one.path, [recorded.path])) == _prints(
        source.path, source.files, os.getcwd()
    )


def _prints(path: str, files: Sequence[FilePrint], folder: str) -> list[tuple[str, int, str]]:
    place = path if "://" in path else os.path.normpath(os.path.join(folder, path))
    return [(os.path.join(place, file.name).rstrip("/"), file.size, file.sha256) for file in files]


def _is_newer(source: Checkpoint, one: Checkpoint) -> bool:
    """Return whether a file of ``source`` was modified after all files of ``one``."""
    times = [file.mtime_ns for file in source.files if file.mtime_ns is not None]
    made = [file.mtime_ns for file in one.files if file.mtime_ns is not None]
    return bool(times and made) and max(times) > max(made)
