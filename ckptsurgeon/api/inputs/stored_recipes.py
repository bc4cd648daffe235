"""Reads the recipes in inputs, and finds those that belong to other weights than the input has now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import crc32
from ...errors import CheckpointError
from ...storage.json_text import read_json
from ...storage.read.local import ConsumedFile
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["changed_tensor", "stale_note", "stored_recipe"]

MOST = 64 << 20
"""The most bytes of tensors that are read, to compare them with the checksums in a recipe."""
BLOCK = 1 << 20


def stored_recipe(one: Checkpoint) -> Mapping[str, Any]:
    """Return the recipe in a checkpoint as plain data; {} if it has none, or a damaged one, which verify reports."""
    with suppress(ValueError):
        recipe = read_json(one.recipe or "{}")
        return recipe if isinstance(recipe, dict) else {}
    return {}


def changed_tensor(one: Checkpoint, recipe: Mapping[str, Any]) -> str:
    """Return the key of a tensor whose values do not have the checksum in the recipe; '' if none is found.

    Such a recipe is stale: it describes weights that were replaced since. Computed tensors are compared first, and 64
    MB at most; tensors of remote files are not compared.
    """
    stored = one.stored or one
    rows = recipe.get("tensors")
    left = MOST
    for key, info, wanted in _by_size(stored, rows if isinstance(rows, dict) else {}):
        left -= info.nbytes
        if left < 0:
            break
        with suppress(CheckpointError, ValueError, TypeError):  # verify and ``apply`` report these
            if _checksum(stored, info) != int(wanted, 16):
                return key
    return ""


def _by_size(stored: Checkpoint, rows: Mapping[str, Any]) -> Iterator[tuple[str, TensorInfo, Any]]:
    """Yield the key, header and recorded checksum of local tensors: first those that were computed, each by size."""
    local = {key: info for key, info in stored.items() if info.is_plain and info.nbytes and _is_local(stored, info)}
    known = {key: rows[key] for key in local if isinstance(rows.get(key), dict)}
    for key in sorted(known, key=lambda key: (known[key].get("op", "copy") == "copy", local[key].nbytes)):
        yield key, local[key], known[key].get("crc32")


def _is_local(stored: Checkpoint, info: TensorInfo) -> bool:
    file = stored.file(info)
    return not (file.remote or file.closed or isinstance(file, ConsumedFile))


def _checksum(stored: Checkpoint, info: TensorInfo) -> int:
    """Return the CRC-32 of the bytes of a tensor."""
    crc, file = 0, stored.file(info)
    assert info.storage is not None
    begin = info.storage.offset + info.offset
    for done in range(0, info.nbytes, BLOCK):
        crc = crc32(file.read(begin + done, min(BLOCK, info.nbytes - done)), crc)
    return crc


def stale_note(one: Checkpoint, key: str) -> str:
    """Return a note on a checkpoint whose recipe is of other weights: the tensor ``key`` has another checksum."""
    return (
        f"the recipe of {escape(one.path)} describes other weights than it has now ({escape(key)} has another "
        "checksum), so it is not used"
    )
