"""Recognises the files of checkpoints by their names: weights, shards, and indexes of shards."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

__all__ = [
    "EXPORTED",
    "HDF5",
    "INDEX",
    "PREFERRED",
    "SUFFIXES",
    "has_index",
    "has_weights",
    "indexed_name",
    "is_exported",
    "is_weights",
    "missing_shards",
    "numbered",
    "shard_name",
    "shards_among",
    "shards_of",
]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".gguf")
EXPORTED = (".onnx", ".msgpack", ".pt2", ".pdparams")
HDF5 = (".h5", ".hdf5", ".keras")
"""Suffixes of files that are read only if a folder has no checkpoint with one of ``SUFFIXES``.

Such files are often exports of a checkpoint in the same folder. Files with a suffix in ``HDF5`` are read only if the
folder has no file with a suffix in ``EXPORTED`` either.
"""
PREFERRED = (
    "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors",
    "adapter_model.bin",
)  # fmt: skip
_VARIANT = re.compile(r"^([^.]+)\.[\w-]+(\.safetensors|\.bin)$")
"""Matches the name of a variant in transformers and diffusers, such as ``model.fp16.safetensors``."""


def is_weights(name: str) -> bool:
    """Return whether a file name has the suffix of a checkpoint, such as ``.safetensors`` or ``.pth``."""
    return name.lower().endswith(SUFFIXES)


def is_exported(name: str) -> bool:
    """Return whether a file name has the suffix of an exported model, such as ``.onnx``."""
    return name.lower().endswith((*EXPORTED, *HDF5))


def has_weights(names: Sequence[str]) -> bool:
    """Return whether ``names`` include a usual name of model weights, such as ``model.safetensors``.

    The names of indexes (``model.safetensors.index.json``) and of variants (``model.fp16.safetensors``) count, too.
    """
    return any((_VARIANT.sub(r"\1\2", indexed_name(name)) or name) in PREFERRED for name in names)


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
