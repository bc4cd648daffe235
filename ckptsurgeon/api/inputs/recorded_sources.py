"""Finds inputs that are sources of other inputs, according to the recipes in the inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.recipe import folder_of_recipe
from ...util.text import escape
from .stored_recipes import changed_tensor, stored_recipe

__all__ = ["counted_notes", "swapped_notes"]

COPIES, MIXES = ("convert", "filter", "rename"), ("average", "merge")
"""Verbs whose output has the weights of its only source, or those of each of its sources in part."""


def counted_notes(opened: Sequence[Checkpoint]) -> list[str]:
    """Return notes on inputs that count twice, since another input was made from them, according to its recipe.

    The base of a merge counts as no source: interpolating its output with the base is usual.
    """
    recipes = [(one, stored_recipe(one)) for one in opened]
    told = [(one, recipe) for one, recipe in recipes if recipe.get("verb") in (*COPIES, *MIXES)]
    return list(
        dict.fromkeys(
            f"{escape(source.path)} is also a source of {escape(one.path)}, according to the recipe there: it counts "
            "twice"
            for one, recipe in told
            for source in opened
            if source is not one and _is_source(source, one, recipe) and not changed_tensor(one, recipe)
        )
    )


def swapped_notes(tuned: Checkpoint, base: Checkpoint) -> list[str]:
    """Return a note if ``base`` was made from ``tuned``, according to its recipe: they are probably swapped.

    This holds for a model to which adapters or changes of other models were added. Other verbs may rightly make a base
    from a tuned model, such as a quantised one.
    """
    recipe = stored_recipe(base)
    if not _is_made(base, tuned, recipe) or changed_tensor(base, recipe):
        return []
    ours, theirs = escape(tuned.path), escape(base.path)
    return [
        f"{theirs} was made from {ours} by {recipe['verb']}, according to its recipe: the adapter takes that change "
        f"back; to extract the change, write {theirs} first, then {ours}"
    ]


def _is_made(made: Checkpoint, base: Checkpoint, recipe: Mapping[str, Any]) -> bool:
    """Return whether adapters or changes of other models were added to ``base``, which made ``made``."""
    try:
        verb, arguments, rows = recipe["verb"], recipe["arguments"], recipe["sources"]
        if verb == "merge":
            return any(row["name"] == arguments.get("base") and _is_row(base, made, row) for row in rows)
        adds = max(arguments.get("weights") or [1.0]) > 0  # not if adapters are only subtracted, to undo their merge
        return bool(verb == "lora merge" and adds and _is_row(base, made, rows[0]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # a damaged recipe: verify reports it
        return False


def _is_source(source: Checkpoint, one: Checkpoint, recipe: Mapping[str, Any]) -> bool:
    """Return whether an input is a source of ``one``, apart from the base of a merge, according to the recipe.

    A merge by a recipe of mergekit may use some layers of a model only, so it is left out.
    """
    try:
        if "recipe" in recipe["arguments"]:
            return False
        base = recipe["arguments"].get("base")
        rows = [row for row in recipe["sources"] if row["role"] == "source" and row["name"] != base]
        return any(_is_row(source, one, row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError):  # a damaged recipe: verify reports it
        return False


def _is_row(source: Checkpoint, one: Checkpoint, row: Mapping[str, Any]) -> bool:
    """Return whether an input is the source of ``one`` that ``row`` of its recipe describes.

    It is recognised by the paths, sizes and fingerprints of its files. Models of one architecture have equal
    fingerprints, so a file that was written after ``one``, such as the newest checkpoint of a run, is another model.
    """
    if source.in_memory or not row["path"] or source.root != row["root"] or _is_newer(source, one):
        return False
    return _prints(row["path"], row["files"], folder_of_recipe(one.path)) == _prints(
        source.path, [vars(file) for file in source.files], os.getcwd()
    )


def _prints(path: str, files: Sequence[Mapping[str, Any]], folder: str) -> list[tuple[str, int, str]]:
    place = path if "://" in path else os.path.normpath(os.path.join(folder, path))
    return [(os.path.join(place, file["name"]).rstrip("/"), file["size"], file["sha256"]) for file in files]


def _is_newer(source: Checkpoint, one: Checkpoint) -> bool:
    """Return whether a file of ``source`` was modified after the last file of ``one``."""
    times = [file.mtime_ns for file in source.files if file.mtime_ns is not None]
    made = [file.mtime_ns for file in one.files if file.mtime_ns is not None]
    return bool(times and made) and max(times) > max(made)
