"""Reads the recipes in inputs: checks that they describe the weights, and finds the adapters and models in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import crc32
from ...errors import CheckpointError
from ...formats.base.header import FilePrint
from ...planning.encoding_checks import stored_sources
from ...planning.plan.files import ADAPTER_VERBS, PlanSource, given_sources
from ...planning.plan.plan import Plan
from ...planning.recipe import MergedAdapter, Recipe, RecipeEntry, parse_recipe
from ...planning.recipe_text import folder_of_recipe
from ...storage.read.local import ConsumedFile, is_local
from ...tensors.info import TensorInfo
from ...util.text import escape

if TYPE_CHECKING:
    from ...engine.inputs import PlanInputs

__all__ = [
    "COPIES",
    "MIXES",
    "changed_tensor",
    "counted_notes",
    "merged_adapters",
    "merged_notes",
    "stale_note",
    "stored_recipe",
    "swapped_notes",
    "tail_of",
    "weights_of",
]

MOST_BYTES = 64 << 20
"""The largest number of bytes of tensors that are read, to compare the tensors with the checksums in a recipe."""
BLOCK = 1 << 20
"""The number of bytes that are read from a file at a time."""


def stored_recipe(one: Checkpoint) -> Recipe | None:
    """Return the recipe in a checkpoint, without its list of tensors; None if the recipe is missing or damaged.

    ``ckpt verify`` reports a damaged recipe.
    """
    with suppress(CheckpointError):
        return parse_recipe(one.recipe, tensors=False) if one.recipe is not None else None
    return None


def weights_of(arguments: Mapping[str, Any], number: int) -> list[float]:
    """Return the weights of ``number`` adapters, from the arguments in a recipe of ``lora merge``; [] if invalid."""
    with suppress(ValueError, TypeError):
        return list(map(float, arguments.get("weights") or [1.0] * number))
    return []


def changed_tensor(one: Checkpoint) -> str:
    """Return the key of a tensor whose values do not have the checksum in the recipe; '' if none is found.

    The recipe is then stale: it describes weights that have been replaced. At most 64 MB are compared, computed tensors
    before copied ones. Tensors of remote files are not compared.
    """
    stored, left = one.stored or one, MOST_BYTES
    try:
        made = parse_recipe(one.recipe or "").tensors
    except CheckpointError:
        return ""
    for key, info, crc in _by_size(stored, made):
        left -= info.nbytes
        if left < 0:
            break
        with suppress(CheckpointError):  # ``apply`` reports a tensor that cannot be read
            if _checksum(stored, info) != crc:
                return key
    return ""


def _by_size(stored: Checkpoint, made: Mapping[str, RecipeEntry]) -> Iterator[tuple[str, TensorInfo, int]]:
    """Yield (key, header, recorded checksum) of local tensors: first the computed ones, then the copied ones.

    In both groups, smaller tensors come first. ``made`` maps the keys to their entries in the recipe.
    """
    local = {key: info for key, info in stored.items() if info.is_plain and info.nbytes and is_local(stored.file(info))}
    known = {key: made[key] for key in local if key in made and not made[key].implied}
    for key in sorted(known, key=lambda key: (known[key].op == "copy", local[key].nbytes)):
        yield key, local[key], known[key].crc32


def _checksum(stored: Checkpoint, info: TensorInfo) -> int:
    """Return the CRC-32 of the bytes of a tensor."""
    crc, file = 0, stored.file(info)
    assert info.storage is not None
    begin = info.storage.offset + info.offset
    for done in range(0, info.nbytes, BLOCK):
        crc = crc32(file.read(begin + done, min(BLOCK, info.nbytes - done)), crc)
    return crc


def stale_note(one: Checkpoint, key: str) -> str:
    """Return a note that a checkpoint's recipe describes other weights than the present ones.

    ``key`` is the key of a tensor that differs.
    """
    return (
        f"the recipe of {escape(one.path)} is not used, because the weights have been replaced since it was written: "
        f"{escape(key)} does not have the checksum that the recipe records"
    )


TAIL = 1 << 16
"""The number of bytes at the end of an adapter's file that are compared to distinguish adapters with equal headers."""
VERB = "lora merge"
MOST_ADAPTERS = 1000
"""The largest number of adapters that are read from a recipe. Each adapter is compared with all others."""
NOTHING = 1e-9
"""An adapter may be merged several times. If its weights add up to less than this, its merge was undone."""


def merged_notes(base: Checkpoint, adapters: Sequence[Checkpoint], weights: Sequence[float]) -> list[str]:
    """Return notes on those of ``adapters`` that are already merged into ``base``, according to the recipe in ``base``.

    ``weights`` are the weights of ``adapters``. There is no note on an adapter whose weight has the opposite sign of
    its weight in the recipe, because such a weight undoes the merge. If the weights of ``base`` were replaced after the
    recipe was written, the result is one note that says this, in place of all others.
    """
    known = _recorded(base)
    notes: list[str] = []
    for one, weight in zip(adapters, weights, strict=True) if known else ():
        again = next((old for old in known if not one.in_memory and _is_same(old, _adapter(one, weight))), None)
        if again is not None and again.weight * weight > 0:
            done, merged = ("added", "merged") if weight > 0 else ("subtracted", "subtracted")
            notes.append(
                f"{escape(one.path)} is {done} a second time: according to the recipe in {escape(base.path)}, this "
                f"adapter is already {merged}"
            )
    changed = changed_tensor(base) if notes else ""
    return [stale_note(base, changed)] if changed else notes


def merged_adapters(plan: Plan, inputs: PlanInputs) -> tuple[MergedAdapter, ...]:
    """Return the adapters in the weights that a plan makes: those that it merges, and those merged into its sources.

    The paths are absolute, or URLs. The result is empty if the output is itself an adapter.
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
    """Add an adapter to a list; if the list already has this adapter, add its weight to the listed weight."""
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
    """Return the adapters merged into a checkpoint; [] if its recipe does not describe its present weights."""
    found = _recorded(one)
    return [] if found and changed_tensor(one) else found


def _recorded(one: Checkpoint) -> list[MergedAdapter]:
    """Return the adapters merged into a checkpoint, according to its recipe; their paths are absolute, or URLs."""
    recipe = stored_recipe(one)
    if recipe is None:
        return []
    known = list(recipe.adapters) if recipe.adapters is not None else _older(recipe)
    folder = folder_of_recipe(one.path, (old.path for old in known))
    return [replace(old, path=_absolute(old.path, folder)) for old in known[:MOST_ADAPTERS]]


def _older(recipe: Recipe) -> list[MergedAdapter]:
    """Return the merged adapters from the sources of an older recipe, which has no list of merged adapters."""
    if recipe.verb != VERB:
        return []
    rows = given_sources(recipe.sources)[1:]
    pairs = zip(rows, weights_of(recipe.arguments, len(rows)), strict=False)
    return [MergedAdapter(row.path, row.files, weight) for row, weight in pairs if row.path]


def _absolute(path: str, folder: str) -> str:
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))


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
        f"change; for an adapter that makes this change, give {theirs} as the tuned model and {ours} as the base"
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
