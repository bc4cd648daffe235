"""Makes notes on a damaged recipe, and on shards whose small tensors do not have the checksums in the recipe."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ..errors import CheckpointError
from ..formats.base.sharded_writer import RECIPE_FILE
from ..storage.read.base import File
from ..storage.read.local import is_local
from ..tensors.info import TensorInfo
from ..util.text import escape, listing, together

__all__ = ["damaged_recipe_notes", "other_shard_notes"]

LARGEST = 1 << 18
"""The largest size, in bytes, of a tensor whose checksum is compared with the recipe."""


def damaged_recipe_notes(recipe: str | None, path: str) -> Iterator[str]:
    """Yield a note on a recipe that is cut short. ``ckpt check`` and ``ckpt verify`` also find other damage."""
    if recipe is not None and not recipe.rstrip().endswith("}"):
        yield (
            f"the recipe of {escape(path)} is damaged: the weights and the token list are not compared with the recipe"
        )


def other_shard_notes(
    recipe: str | None, tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]
) -> Iterator[str]:
    """Yield a note if some shards fit the recipe in their folder, but others do not: these are of another output.

    A shard of another output may have equal keys and shapes, and so an equal header. So two tensors of each shard are
    read: its smallest, and its largest of at most ``LARGEST`` bytes. ``tensors`` are the tensors by their keys in the
    files, ``handles`` maps each ``Storage.file`` to the open file.
    """
    shards = _samples(tensors, handles) if recipe and len(handles) > 1 else {}
    sums = _checksums(recipe, [key for keys in shards.values() for key in keys]) if recipe and len(shards) > 1 else {}
    wrong = {
        name: [key for key in keys if _differs(handles[name], tensors[key], sums[key])]
        for name, keys in (shards.items() if sums else ())
    }
    strange = [handles[name].name for name, keys in wrong.items() if keys]
    others = len(wrong) - len(strange)
    if strange and others:
        are = "is" if len(strange) == 1 else "are"
        those = "the other shard" if others == 1 else f"the other {others} shards"
        keys = [key for each in wrong.values() for key in each]
        have = "has another checksum" if len(keys) == 1 else "have other checksums"
        named = listing(strange, 2, where="")
        yield f"{named} {are} not from the same output as {those}: {together(keys, 2)} {have} in {RECIPE_FILE}"


def _samples(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> dict[str, list[str]]:
    """Return the keys of the tensors to read in each local file with tensors."""
    small: dict[str, list[str]] = defaultdict(list)
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and not info.opaque and 0 < info.nbytes <= LARGEST:
            small[info.storage.file].append(key)
    found = {}
    for name, keys in small.items():
        file = handles.get(name)
        if is_local(file):
            ordered = sorted(keys, key=lambda key: tensors[key].nbytes)
            found[name] = list(dict.fromkeys((ordered[0], ordered[-1])))
    return found


def _checksums(recipe: str, keys: Sequence[str]) -> dict[str, int]:
    """Return the CRC-32 of tensors in a recipe, by key; {} if the recipe is damaged, or lacks one of the tensors.

    If it lacks one, it describes other weights.
    """
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        rows = json.loads(recipe)["tensors"]
        return {key: int(rows[key]["crc32"], 16) for key in keys}
    return {}


def _differs(file: File, info: TensorInfo, checksum: int) -> bool:
    """Return whether the bytes of a tensor have another CRC-32; False if they cannot be read."""
    assert info.storage is not None
    with suppress(CheckpointError):
        return zlib.crc32(file.read(info.storage.offset + info.offset, info.nbytes)) != checksum
    return False
