"""Reads the recipes in inputs, and finds recipes that do not describe the weights that the input has now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import crc32
from ...errors import CheckpointError
from ...planning.recipe import Recipe, RecipeEntry
from ...planning.recipe_text import parse_recipe
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["changed_tensor", "stale_note", "stored_recipe", "weights_of"]

MOST = 64 << 20
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
    stored, left = one.stored or one, MOST
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
