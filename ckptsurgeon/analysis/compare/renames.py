"""Finds tensors that have different names in two checkpoints, by their content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.reading import read_part
from ...engine.prefetch import fetch_keys
from ...planning.keys.infer_rules import rules_for, unspelled
from ...tensors.info import TensorInfo
from ...tensors.ops.regions import blocks
from ...util.text import natural_key
from .bytewise import check_records
from .results import Difference

__all__ = ["with_renames"]

ELEMENTS = 1 << 18
BLOCK = 1 << 20

Make = tuple[str, tuple[int, ...]]


def with_renames(found: Difference, first: Checkpoint, second: Checkpoint) -> Difference:
    """Return ``found`` with the tensors that have another name in the second checkpoint, and the rules to rename them.

    Tensors with the same dtype, shape and bytes are taken for the same. If there are several (as biases of zeros),
    those with the most similar names are paired.
    """
    old = _by_content(first, found.removed, _makes(second, found.added))
    new = _by_content(second, found.added, _makes(first, found.removed))
    renamed: dict[str, str] = {}
    for digest, keys in old.items():
        renamed.update(_paired(keys, new.get(digest, [])))
    renamed = {key: renamed[key] for key in sorted(renamed, key=natural_key)}
    taken = set(renamed.values())
    names = {key: renamed.get(key, key) for key in first}
    rules = rules_for(names)
    return replace(
        found,
        removed=tuple(key for key in found.removed if key not in renamed),
        added=tuple(key for key in found.added if key not in taken),
        renamed=renamed,
        rules=tuple(rules),
        unwrap=bool(renamed and first.stripped),
        notes=(*found.notes, *unspelled(names, rules)),
    )


def _makes(checkpoint: Checkpoint, keys: Sequence[str]) -> set[Make]:
    return {_make(checkpoint[key]) for key in keys}


def _by_content(checkpoint: Checkpoint, keys: Sequence[str], makes: set[Make]) -> Mapping[str, list[str]]:
    """Return keys, grouped by the SHA-256 of the tensor's dtype, shape and values.

    Only tensors whose dtype and shape are in ``makes`` are read. Raises FormatError for a wrong checksum.
    """
    found: dict[str, list[str]] = defaultdict(list)
    wanted = [key for key in keys if _make(checkpoint[key]) in makes and not checkpoint[key].opaque]
    fetch_keys(checkpoint, wanted)
    check_records(checkpoint, wanted, set())
    for key in wanted:
        found[_digest(checkpoint, checkpoint[key])].append(key)
    return found


def _make(info: TensorInfo) -> Make:
    return info.dtype, info.shape


def _digest(checkpoint: Checkpoint, info: TensorInfo) -> str:
    digest = hashlib.sha256(f"{info.dtype} {info.shape}".encode())
    for piece in _pieces(checkpoint, info):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[bytes]:
    """Yield the bytes of a tensor in pieces, as if it were contiguous.

    The bytes of a contiguous tensor are read as they are, because its elements can have 6 bits.
    """
    if not info.is_plain:
        yield from (read_part(checkpoint, info, box).tobytes() for box in blocks(info.shape, ELEMENTS))
        return
    assert info.storage is not None
    file, start = checkpoint.file(info), info.storage.offset + info.offset
    for done in range(0, info.nbytes, BLOCK):
        yield file.read(start + done, min(BLOCK, info.nbytes - done))


def _paired(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """Return a map from keys in ``old`` to keys in ``new``; the tensors of all these keys have the same content.

    Keys that agree in the most segments (parts between dots), counted from the end, are paired first. Keys that agree
    in equally many are paired in natural order.
    """
    left, right = sorted(old, key=natural_key), sorted(new, key=natural_key)
    pairs: dict[str, str] = {}
    for depth in range(max(key.count(".") for key in (*old, *new)) + 1, -1, -1):
        ends = _by_end(right, depth)
        for end, keys in _by_end(left, depth).items():
            pairs.update(zip(keys, ends.get(end, ()), strict=False))
        taken = set(pairs.values())
        left, right = [key for key in left if key not in pairs], [key for key in right if key not in taken]
        if not left or not right:
            break
    return pairs


def _by_end(keys: Sequence[str], depth: int) -> dict[str, list[str]]:
    """Return keys, grouped by their last ``depth`` segments (parts between dots); keys with fewer are left out."""
    found: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        if len(parts) >= depth:
            found.setdefault(".".join(parts[len(parts) - depth :]), []).append(key)
    return found
