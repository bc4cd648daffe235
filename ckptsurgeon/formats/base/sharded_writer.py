"""Splits a checkpoint into several files: names of shards, index, and the recipe and digest of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from ...errors import ConfigError, UnsafeError
from ...storage.read.base import Folder
from ...util.text import escape
from .header import UNSEALED, IndexFile, OutputLayout, OutTensor, seal_of
from .limits import RECIPE_BYTES

__all__ = [
    "INDEX",
    "RECIPE_FILE",
    "IndexedShards",
    "OneFile",
    "folder_digest",
    "folder_frame",
    "folder_recipe",
    "has_index",
    "indexed_name",
    "missing_shards",
    "numbered",
    "shard_name",
    "shards_among",
    "shards_of",
    "split_shards",
]

# Names of shards and of their index.
#
# transformers writes five digits: ``model-00001-of-00002.safetensors``. The numbers may have any width: DeepSeek-V3 has
# ``model-00001-of-000163.safetensors``. Llama has ``consolidated.00.pth``.

INDEX = ".index.json"
_INDEX_NAME = re.compile(r"(.+)\.index(?:\.([\w-]+))?\.json", re.IGNORECASE | re.DOTALL)
"""Matches the names of indexes, also of a variant such as fp16."""
_NUMBERED = re.compile(r"(.*)[-_.]\d+[-_]of[-_](?!0*1(?!\d))\d+((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
"""Matches the names of shards; file 1 of 1 is not a shard, but the whole checkpoint."""
_COUNTED = re.compile(r"(.*[-_.])(\d{1,7})([-_]of[-_])(\d{1,7})((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
"""Matches numbered files; the second group is the number of the file, the fourth the number of all files."""
_RANK = re.compile(r"(consolidated)\.\d+(\.[a-z]+)", re.IGNORECASE)
"""Matches Llama's files: if there are several, each has the part of one rank; a single file is the whole model."""


def shard_name(named: str) -> str:
    """Return the path of a shard without redundant parts: ``model.bin`` for ``./model.bin``.

    ``named`` is the path as an index gives it.
    """
    return "/".join(part for number, part in enumerate(named.split("/")) if part != "." and (part or not number))


def numbered(stem: str, suffix: str, *, any_case: bool = False) -> re.Pattern[str]:
    """Return a regular expression for the names of the shards of the index ``<stem><suffix>.index.json``.

    If ``any_case`` is true, the regular expression ignores the case of letters.
    """
    pattern = rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}"
    return re.compile(pattern, re.IGNORECASE if any_case else 0)


def missing_shards(shards: Collection[str], most: int) -> tuple[list[str], int]:
    """Return the names of at most ``most`` missing shards, and how many shards are missing in all.

    The name ``model-00001-of-00002`` implies that there is also ``model-00002-of-00002``.
    """
    found = [match for name in shards if (match := _COUNTED.fullmatch(name))]
    have: dict[tuple[str, str, str], set[int]] = {}
    for head, number, of, total, suffix in (match.groups() for match in found):
        have.setdefault((head, of + total, suffix), set()).add(int(number))
    width = max((len(match[2]) for match in found), default=0)
    names: list[str] = []
    many = 0
    for (head, of, suffix), numbers in have.items():
        total = int(re.split(r"\D+", of)[-1])
        wanted = range(1, total + (0 not in numbers))  # numbers that begin with 0 end at the total minus 1
        many += len(wanted) - sum(number in wanted for number in numbers)
        missing = (number for number in wanted if number not in numbers)
        names += [f"{head}{number:0{width}d}{of}{suffix}" for number in islice(missing, most - len(names))]
    return names, many


def shards_of(name: str) -> int:
    """Return the number of shards in a file name: 2 for ``model-00001-of-00002.bin``.

    Returns 0 if the name has no such number, or if the number is 0 or 1.
    """
    found = _COUNTED.fullmatch(name)
    return int(found[4]) if found and int(found[4]) > 1 else 0


def shards_among(names: Sequence[str]) -> set[str]:
    """Return the names of shards among ``names``, such as ``model-00001-of-00002.safetensors``."""
    ranks = {name: found.groups() for name in names if (found := _RANK.fullmatch(name))}
    several = Counter(ranks.values())
    return {name for name in names if _NUMBERED.fullmatch(name) or (name in ranks and several[ranks[name]] > 1)}


def indexed_name(name: str) -> str:
    """Return the name that the weights of an index would have as a single file; '' if ``name`` is not an index.

    For ``model.safetensors.index.json`` this is ``model.safetensors``. For ``model.safetensors.index.fp16.json``, which
    is how transformers calls the index of a variant, it is ``model.fp16.safetensors``.
    """
    found = _INDEX_NAME.fullmatch(name)
    if found is None:
        return ""
    stem, suffix = os.path.splitext(found[1])
    return f"{stem}.{found[2]}{suffix}" if found[2] else found[1]


def has_index(shard: str, indexed: Collection[str]) -> bool:
    """Return whether there is an index for the shard named ``shard``.

    ``indexed`` has the result of ``indexed_name`` for each index of the folder, in lower case.
    """
    found = _NUMBERED.fullmatch(shard) or _RANK.fullmatch(shard)
    return found is not None and f"{found[1]}{found[2]}".lower() in indexed


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


class IndexedShards:
    """Shards in the convention of transformers: numbered files and a JSON index; a single file has no index."""

    def __init__(self, stem: str, suffix: str) -> None:
        self._stem = stem
        self._suffix = suffix

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` shards; the name of a single file has no number."""
        if number == 1:
            return [self._stem + self._suffix]
        return [f"{self._stem}-{i:05d}-of-{number:05d}{self._suffix}" for i in range(1, number + 1)]

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
        return f"{self._stem}{self._suffix}{INDEX}"

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return the names in ``present``, the files of a folder, that belong to a checkpoint in this convention.

        These are files with names of shards, and files that the index lists. ``read`` is a function that returns the
        bytes of a file. Since the caller may delete the returned files, a listed file must also have the suffix of a
        shard: an index could list code or a configuration.
        """
        names = {self._stem + self._suffix, self._index_name}
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            listed = json.loads(read(self._index_name))["weight_map"].values()
            names |= {shard_name(name) for name in listed if self._is_file(name)}
        pattern = numbered(self._stem, self._suffix)
        return {name for name in present if name in names or pattern.fullmatch(name)}

    def _is_file(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return os.path.basename(name) == shard_name(name) and name.endswith(self._suffix)


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
