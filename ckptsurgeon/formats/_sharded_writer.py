"""How a checkpoint is spread over several files, and what binds them together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from ..errors import UnsafeError
from ..sources import Folder
from ..text import escape
from ._header import OutTensor
from ._seal import UNSEALED, seal_of
from .limits import RECIPE_BYTES

__all__ = [
    "RECIPE_FILE",
    "folder_digest",
    "folder_frame",
    "folder_recipe",
    "index_text",
    "shard_names",
    "split_shards",
]

RECIPE_FILE = "ckptsurgeon.json"
"""Where the recipe of a folder of ours lies."""

_STEMS = {".safetensors": "model", ".bin": "pytorch_model"}


def split_shards(tensors: Sequence[OutTensor], limit: int, *, shares: bool = False) -> list[list[OutTensor]]:
    """Fill shards of at most ``limit`` bytes in order; what is larger gets one of its own.

    A tensor and its aliases always lie in one shard. With ``shares`` the aliases take no bytes of their own.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors:
        owner = tensor.alias_of or tensor.key
        sizes[owner] = sizes.get(owner, 0) + (0 if shares and tensor.alias_of else tensor.nbytes)
    shards: list[list[OutTensor]] = [[]]
    number, filled = {}, 0
    for owner, size in sizes.items():
        if filled and filled + size > limit:
            shards.append([])
            filled = 0
        number[owner] = len(shards) - 1
        filled += size
    for tensor in tensors:
        shards[number[tensor.alias_of or tensor.key]].append(tensor)
    return shards


def shard_names(number: int, suffix: str) -> list[str]:
    """Return the names transformers looks for: one file has none of the numbers."""
    stem = _STEMS[suffix]
    if number == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{i:05d}-of-{number:05d}{suffix}" for i in range(1, number + 1)]


def index_text(shards: Mapping[str, Sequence[OutTensor]]) -> str:
    """Return the index of some shards."""
    total = sum(t.nbytes for tensors in shards.values() for t in tensors)
    weight_map = {t.key: name for name, tensors in shards.items() for t in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def folder_frame(folder: Folder, digests: Mapping[str, str]) -> str:
    """Return the digest over all files of a folder's checkpoint, as it was before its recipe was sealed."""
    recipe = _recipe(folder)
    plain = recipe.replace(seal_of(recipe) or UNSEALED, UNSEALED, 1)
    return folder_digest({**digests, RECIPE_FILE: hashlib.sha256(plain.encode()).hexdigest()})


def folder_recipe(folder: Folder) -> str | None:
    """Return the text of the recipe that lies in a folder, None when there is none."""
    if RECIPE_FILE not in folder.names():
        return None
    return _recipe(folder)


def _recipe(folder: Folder) -> str:
    file = folder.file(RECIPE_FILE)
    if file.size > RECIPE_BYTES:
        raise UnsafeError(f"{escape(file.uri)} is too large for a recipe.", rule="recipe size")
    return file.read(0, file.size).decode("utf-8", "replace")


def folder_digest(digests: Mapping[str, str]) -> str:
    """Return one digest for the files of a checkpoint, from the digest of each."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
