"""How a checkpoint is spread over several files, and what binds them together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

from ...errors import UnsafeError
from ...storage.read.base import Folder
from ...util.text import escape
from .header import Layout, OutTensor
from .limits import RECIPE_BYTES
from .seal import UNSEALED, seal_of
from .shard_names import INDEX, numbered

__all__ = [
    "RECIPE_FILE",
    "Indexed",
    "folder_digest",
    "folder_frame",
    "folder_recipe",
    "split_shards",
]

RECIPE_FILE = "ckptsurgeon.json"
"""Where the recipe of a folder of ours lies."""

DESCRIBED = 64 << 20
DESCRIPTION = 128
"""Bytes in which the tensors of one shard are described, and how many of them each takes beside its key.

Readers of safetensors take a header of at most 100 MB: some 400,000 tensors.
"""


def split_shards(tensors: Sequence[OutTensor], limit: int, *, shares: bool = False) -> list[list[OutTensor]]:
    """Fill shards of at most ``limit`` bytes in order; what is larger gets one of its own.

    A tensor and its aliases always lie in one shard. With ``shares`` the aliases take no bytes of their own. What a
    shard says of its tensors is bounded too.
    """
    sizes: dict[str, int] = {}
    said: dict[str, int] = {}
    for tensor in tensors:
        owner = tensor.alias_of or tensor.key
        sizes[owner] = sizes.get(owner, 0) + (0 if shares and tensor.alias_of else tensor.nbytes)
        said[owner] = said.get(owner, 0) + len(tensor.key) + DESCRIPTION
    shards: list[list[OutTensor]] = [[]]
    number, filled, described = {}, 0, 0
    for owner, size in sizes.items():
        if (filled and filled + size > limit) or (described and described + said[owner] > DESCRIBED):
            shards.append([])
            filled = described = 0
        number[owner] = len(shards) - 1
        filled += size
        described += said[owner]
    for tensor in tensors:
        shards[number[tensor.alias_of or tensor.key]].append(tensor)
    return shards


class Indexed:
    """The convention of transformers and huggingface_hub: numbered files and an index in JSON; one file needs none."""

    def __init__(self, stem: str, suffix: str) -> None:
        self._stem = stem
        self._suffix = suffix

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` files."""
        if number == 1:
            return [self._stem + self._suffix]
        return [f"{self._stem}-{i:05d}-of-{number:05d}{self._suffix}" for i in range(1, number + 1)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], Layout]]) -> tuple[str, bytes]:
        """Return the name and the bytes of the index of some files; '' where there is none."""
        if len(files) == 1:
            return "", b""
        total = sum(t.nbytes for tensors, _ in files.values() for t in tensors)
        weight_map = {t.key: name for name, (tensors, _) in files.items() for t in tensors}
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        return self._index_name, text.encode("utf-8", "surrogatepass")

    @property
    def _index_name(self) -> str:
        return f"{self._stem}{self._suffix}{INDEX}"

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return which of the files in a folder are of such a checkpoint, by their names and by its index.

        They may be removed, so an index's word alone is not enough: it may list code or a configuration.
        """
        names = {self._stem + self._suffix, self._index_name}
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            listed = json.loads(read(self._index_name))["weight_map"].values()
            names |= {name for name in listed if self._is_file(name)}
        pattern = numbered(self._stem, self._suffix)
        return {name for name in present if name in names or pattern.fullmatch(name)}

    def _is_file(self, name: object) -> bool:
        return isinstance(name, str) and os.path.basename(name) == name and name.endswith(self._suffix)


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
