"""Finds the adapters that are already merged into inputs, according to the recipes in the inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...formats.base.header import FilePrint
from ...planning.mixed_layers import stored_sources
from ...planning.plan.files import ADAPTER_VERBS, given_sources
from ...planning.plan.plan import Plan
from ...planning.recipe import MergedAdapter, Recipe, folder_of_recipe
from ...storage.read.local import ConsumedFile
from ...util.text import escape
from .stored_recipes import changed_tensor, stale_note, stored_recipe, weights_of

if TYPE_CHECKING:
    from ...engine.inputs import PlanInputs

__all__ = ["merged_adapters", "merged_notes", "tail_of"]

TAIL = 1 << 16
"""The number of bytes at the end of an adapter's file that are compared to distinguish adapters with equal headers."""
VERB = "lora merge"
MOST = 1000
"""The largest number of adapters that are read from a recipe. More would take long, as each is compared with all."""
NOTHING = 1e-9
"""An adapter may be merged several times. If its weights add up to less than this, its merge was undone."""


def merged_notes(base: Checkpoint, adapters: Sequence[Checkpoint], weights: Sequence[float]) -> list[str]:
    """Return notes on adapters that are already merged into ``base``, according to the recipe in ``base``.

    ``weights`` are the weights of ``adapters``. An adapter that is subtracted, to undo its merge, is not noted. If the
    recipe does not describe the weights that ``base`` has now, the only note says so.
    """
    known = _recorded(base)
    notes: list[str] = []
    for one, weight in zip(adapters, weights, strict=True) if known else ():
        again = next((old for old in known if not one.in_memory and _is_same(old, _adapter(one, weight))), None)
        if again is not None and again.weight * weight > 0:
            notes.append(
                f"{escape(one.path)} is added a second time: according to the recipe in {escape(base.path)}, this "
                "adapter is already merged"
            )
    changed = changed_tensor(base) if notes else ""
    return [stale_note(base, changed)] if changed else notes


def merged_adapters(plan: Plan, inputs: PlanInputs) -> tuple[MergedAdapter, ...]:
    """Return the adapters in the output of a plan: those that it merges, and those in the models that it uses.

    The paths are absolute, or addresses. The result is empty if the output is an adapter, and no model.
    """
    if plan.verb in ADAPTER_VERBS:
        return ()
    stored, number = stored_sources(plan), len(given_sources(plan.sources))
    used = {stored[one.source] for step in plan.steps for one in step.inputs}
    adds = plan.verb == VERB
    found: list[MergedAdapter] = []
    for index, one in enumerate(inputs.sources[:number]):
        if adds and index > 0:
            if not one.in_memory:
                _add(found, _adapter(one, weights_of(plan.arguments, number - 1)[index - 1]))
        elif index in used:
            for old in _in_weights(one):
                if adds or not any(_is_same(old, other) for other in found):
                    _add(found, old)
    return tuple(one for one in found if abs(one.weight) > NOTHING)


def _add(found: list[MergedAdapter], one: MergedAdapter) -> None:
    """Add an adapter to a list; if the list has the same adapter already, add its weight to the weight there."""
    at = next((at for at, other in enumerate(found) if _is_same(one, other)), None)
    if at is None:
        found.append(one)
    else:
        found[at] = replace(found[at], weight=found[at].weight + one.weight)


def _adapter(one: Checkpoint, weight: float) -> MergedAdapter:
    """Return the description of an open adapter that is merged with the weight ``weight``."""
    path = one.path if "://" in one.path else os.path.abspath(one.path)
    return MergedAdapter(path, tuple(map(_plain, one.files)), weight, tail_of(one))


def _plain(file: FilePrint) -> FilePrint:
    return FilePrint(file.name, file.size, file.sha256)


def tail_of(one: Checkpoint) -> str:
    """Return the SHA-256 of the last bytes of a checkpoint's files; '' if the files are remote or cannot be read."""
    files = one.open_files().values()
    if any(file.remote or isinstance(file, ConsumedFile) for file in files):
        return ""
    digest = hashlib.sha256()
    with suppress(CheckpointError):  # ``apply`` reports a file that has changed
        for file in files:
            digest.update(file.read(max(0, file.size - TAIL), min(TAIL, file.size)))
        return digest.hexdigest()
    return ""


def _is_same(one: MergedAdapter, other: MergedAdapter) -> bool:
    """Return whether two adapters are the same.

    Sizes and header digests of their files are compared, and then the digests of their last bytes (``tail``). If one of
    these is not known, their paths are compared instead.
    """
    if [(file.size, file.sha256) for file in one.files] != [(file.size, file.sha256) for file in other.files]:
        return False
    return one.tail == other.tail if one.tail and other.tail else one.path == other.path


def _in_weights(one: Checkpoint) -> list[MergedAdapter]:
    """Return the adapters merged into a checkpoint; none if its recipe does not describe its present weights."""
    found = _recorded(one)
    return [] if found and changed_tensor(one) else found


def _recorded(one: Checkpoint) -> list[MergedAdapter]:
    """Return the adapters merged into a checkpoint, according to its recipe; their paths are absolute, or addresses."""
    recipe = stored_recipe(one)
    if recipe is None:
        return []
    known = list(recipe.adapters) if recipe.adapters is not None else _older(recipe)
    folder = folder_of_recipe(one.path, (old.path for old in known))
    return [replace(old, path=_absolute(old.path, folder)) for old in known[:MOST]]


def _older(recipe: Recipe) -> list[MergedAdapter]:
    """Return the merged adapters from the sources of an older recipe, which has no list of merged adapters."""
    if recipe.verb != VERB:
        return []
    rows = given_sources(recipe.sources)[1:]
    pairs = zip(rows, weights_of(recipe.arguments, len(rows)), strict=False)
    return [MergedAdapter(row.path, row.files, weight) for row, weight in pairs if row.path]


def _absolute(path: str, folder: str) -> str:
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))
