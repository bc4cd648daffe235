"""Finds tensors that two checkpoints hold under different names, by their content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..engine import read_part
from ..keys import rules_for
from ..ops import blocks
from ..tensors import TensorInfo
from ..text import natural_key
from .difference import Difference

__all__ = ["with_renames"]

ELEMENTS = 1 << 18

Make = tuple[str, tuple[int, ...]]


def with_renames(found: Difference, first: Checkpoint, second: Checkpoint) -> Difference:
    """Return a difference in which what only moved is renamed, with the rules that rename it.

    Where several tensors hold the same bytes (biases of zeros), those whose names share most go together; any choice
    makes the two the same.
    """
    old = _by_content(first, found.removed, _makes(second, found.added))
    new = _by_content(second, found.added, _makes(first, found.removed))
    renamed: dict[str, str] = {}
    for digest, keys in old.items():
        renamed.update(_paired(keys, new.get(digest, [])))
    renamed = {key: renamed[key] for key in sorted(renamed, key=natural_key)}
    taken = set(renamed.values())
    names = {key: renamed.get(key, key) for key in first}
    return replace(
        found,
        removed=tuple(key for key in found.removed if key not in renamed),
        added=tuple(key for key in found.added if key not in taken),
        renamed=renamed,
        rules=tuple(rules_for(names)),
    )


def _makes(checkpoint: Checkpoint, keys: Sequence[str]) -> set[Make]:
    return {(checkpoint[key].dtype, checkpoint[key].shape) for key in keys}


def _by_content(checkpoint: Checkpoint, keys: Sequence[str], makes: set[Make]) -> Mapping[str, list[str]]:
    """Return the keys by the SHA-256 of their dtype, shape and values; only those that could have a counterpart."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        info = checkpoint[key]
        if not info.opaque and (info.dtype, info.shape) in makes:
            found[_digest(checkpoint, info)].append(key)
    return found


def _digest(checkpoint: Checkpoint, info: TensorInfo) -> str:
    digest = hashlib.sha256(f"{info.dtype} {info.shape}".encode())
    for box in blocks(info.shape, ELEMENTS):
        digest.update(read_part(checkpoint.file(info), info, box).tobytes())
    return digest.hexdigest()


def _paired(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """Pair keys of the same content: in natural order, those that share most of their last segments first."""
    if len(old) == 1 and len(new) == 1:
        return {old[0]: new[0]}
    left, pairs = sorted(new, key=natural_key), dict[str, str]()
    waiting = sorted(old, key=natural_key)
    ranked = sorted(
        ((-_shared_tail(a, b), i, j) for i, a in enumerate(waiting) for j, b in enumerate(left)),
    )
    used: set[int] = set()
    for _, i, j in ranked:
        if waiting[i] not in pairs and j not in used:
            pairs[waiting[i]] = left[j]
            used.add(j)
    return pairs


def _shared_tail(first: str, second: str) -> int:
    shared = 0
    for a, b in zip(reversed(first.split(".")), reversed(second.split(".")), strict=False):
        if a != b:
            break
        shared += 1
    return shared
