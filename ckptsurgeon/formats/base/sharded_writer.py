"""Splits a checkpoint into several files: the tensors of each shard, the index, the recipe and digest of the folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...errors import ConfigError, UnsafeError
from ...storage.read.base import Folder
from ...util.text import escape
from .format_table import INDEX, numbered, shard_name
from .header import UNSEALED, IndexFile, OutputLayout, OutTensor, seal_of
from .limits import RECIPE_BYTES

__all__ = [
    "OF_DIFFUSERS",
    "RECIPE_FILE",
    "IndexedShards",
    "OneFile",
    "folder_digest",
    "folder_frame",
    "folder_recipe",
    "split_shards",
]

RECIPE_FILE = "ckptsurgeon.json"
"""The name of the file that holds the recipe of an output folder."""

DESCRIBED = 64 << 20
DESCRIPTION = 128
"""The most bytes of a shard's header, and the bytes that each tensor takes there in addition to its key.

Readers of safetensors accept a header of at most 100 MB: about 400,000 tensors.
"""


def split_shards(tensors: Sequence[OutTensor], limit: int, *, shares: bool = False) -> list[list[OutTensor]]:
    """Return the tensors of each shard; shards are filled in order, up to ``limit`` bytes of tensors each.

    A tensor above the limit gets its own shard. A tensor and its aliases are always in the same shard; if ``shares`` is
    true, the aliases take no bytes. The size of a shard's header is limited, too.
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


@dataclass(frozen=True)
class IndexedShards:
    """Shards in the convention of transformers: numbered files and a JSON index; a single file has no index."""

    stem: str
    suffix: str

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` shards; the name of a single file has no number."""
        if number == 1:
            return [self.stem + self.suffix]
        return [f"{self.stem}-{i:05d}-of-{number:05d}{self.suffix}" for i in range(1, number + 1)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return the name of the index and a function that returns its bytes; {} if there is only one file."""
        if len(files) == 1:
            return {}
        total = sum(t.nbytes for tensors, _ in files.values() for t in tensors)
        weight_map = {t.key: name for name, (tensors, _) in files.items() for t in tensors}
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        return {self._index_name: lambda _: text.encode("utf-8", "surrogatepass")}

    @property
    def _index_name(self) -> str:
        return f"{self.stem}{self.suffix}{INDEX}"

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return the names in ``present``, the files of a folder, that belong to a checkpoint in this convention.

        These are files with names of shards, and files that the index lists. ``read`` is a function that returns the
        bytes of a file. Since the caller may delete the returned files, a listed file must also have the suffix of a
        shard: an index could list code or a configuration.
        """
        names = {self.stem + self.suffix, self._index_name}
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            listed = json.loads(read(self._index_name))["weight_map"].values()
            names |= {shard_name(name) for name in listed if self._is_file(name)}
        pattern = numbered(self.stem, self.suffix)
        return {name for name in present if name in names or pattern.fullmatch(name)}

    def _is_file(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return os.path.basename(name) == shard_name(name) and name.endswith(self.suffix)


OF_DIFFUSERS = IndexedShards("diffusion_pytorch_model", ".safetensors")
"""The names of the files that diffusers looks for in the folder of a network."""


class OneFile:
    """Refuses to write several files, for a format whose checkpoints are always one file.

    ``name`` is the name of the format. ``suffix`` is the suffix of its files; '' if it is the same as the name.
    """

    def __init__(self, name: str, suffix: str = "") -> None:
        self._name = name
        self._suffix = suffix or name

    def names(self, number: int) -> list[str]:
        """Raise ConfigError: the format cannot be written into a folder."""
        raise ConfigError(
            f"{self._name} can only be written as one file, not as a folder.",
            hint=f"Write to NAME.{self._suffix}, without --max-shard-size.",
        )

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return an empty mapping: a single file needs no index."""
        return {}

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return an empty set: a checkpoint of this format has no folder."""
        return set()


def folder_frame(folder: Folder, digests: Mapping[str, str]) -> str:
    """Return one digest for the files of a folder.

    ``digests`` has the digest of each file by name, but not of the recipe. The recipe's digest is computed here, with
    zeros in place of its seal.
    """
    recipe = _recipe(folder)
    plain = recipe.replace(seal_of(recipe) or UNSEALED, UNSEALED, 1)
    return folder_digest({**digests, RECIPE_FILE: hashlib.sha256(plain.encode()).hexdigest()})


def folder_recipe(folder: Folder) -> str | None:
    """Return the text of the recipe in a folder; None if there is none."""
    if RECIPE_FILE not in folder.names():
        return None
    return _recipe(folder)


def _recipe(folder: Folder) -> str:
    file = folder.file(RECIPE_FILE)
    if file.size > RECIPE_BYTES:
        raise UnsafeError(f"{escape(file.uri)} is too large to be a recipe.", rule="recipe size")
    return file.read(0, file.size).decode("utf-8", "replace")


def folder_digest(digests: Mapping[str, str]) -> str:
    """Return one digest for the files of a checkpoint, from the digest of each."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
