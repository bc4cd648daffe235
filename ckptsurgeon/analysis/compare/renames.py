"""Finds tensors that have different names in two checkpoints, by their content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.reading import read_part
from ...engine.prefetch import fetch_keys
from ...planning.keys.infer_rules import rules_for, unspelled
from ...tensors.info import TensorInfo
from ...tensors.ops.regions import blocks
from ...util.text import count, escape, natural_key
from .bytewise import check_records
from .results import Difference, Pair

__all__ = ["paired", "with_renames"]

ELEMENTS = 1 << 18
BLOCK = 1 << 20

HEAD = 1 << 12
"""This many bytes at the beginning of tensors are compared before whole tensors are read."""

Make = tuple[str, tuple[int, ...]]
"""The dtype and the shape of a tensor."""


def with_renames(found: Difference, first: Checkpoint, second: Checkpoint) -> Difference:
    """Return ``found`` with the tensors that have another name in the second checkpoint, and the rules to rename them.

    Two tensors with the same dtype, shape and bytes count as the same tensor. If several tensors have the same bytes,
    such as biases of zeros, the tensors with the most similar names are paired. Tensors that exchanged their names, as
    in swapped layers, count as renamed, although ``found`` lists them as changed.
    """
    differing = (pair.key for pair in (*found.changed, *found.reshaped))
    both = {key for key in differing if key in first and key in second}  # the other weights have different encodings
    gone, came = [*found.removed, *both], [*found.added, *both]
    old, new = _alike(first, gone, second, came)
    pairs: dict[str, str] = {}
    for digest, keys in old.items():
        pairs.update(paired(keys, new.get(digest, [])))
    renamed = _without_collisions(pairs, both)
    renamed = {key: renamed[key] for key in sorted(renamed, key=natural_key)}
    taken = set(renamed.values())
    left, replaced = both & (renamed.keys() - taken), both & (taken - renamed.keys())
    moved = renamed.keys() | replaced
    names = {key: renamed.get(key, key) for key in first if key not in replaced}
    rules = rules_for(names)
    return replace(
        found,
        removed=_in_order({*found.removed, *replaced} - renamed.keys()),
        added=_in_order({*found.added, *left} - taken),
        reshaped=tuple(pair for pair in found.reshaped if pair.key not in moved),
        changed=tuple(pair for pair in found.changed if pair.key not in moved),
        decoded=_left_decoded(found, first, moved),
        renamed=renamed,
        rules=tuple(rules),
        unwrap=bool(renamed and first.stripped),
        notes=(*found.notes, *unspelled(names, rules), *_to_remove(replaced)),
    )


def _in_order(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=natural_key))


def _to_remove(replaced: Set[str]) -> Iterator[str]:
    """Yield a note if a rename rule gives a tensor one of the names in ``replaced``, which other tensors still have.

    These other tensors are in the first checkpoint only. Users must filter them out before they apply the rules.
    """
    if replaced:
        named = f"{escape(min(replaced, key=natural_key))}{' and others' if len(replaced) > 1 else ''}"
        number = count(len(replaced), "removed tensor")
        yield f"the rules reuse the names of {number}: filter out {named} before you apply the rules"


def _without_collisions(pairs: Mapping[str, str], both: Set[str]) -> dict[str, str]:
    """Return the pairs (old name, new name) without false renames; ``both`` are the keys in both checkpoints.

    Pairs can form a chain: a -> b, b -> c, where c is in both checkpoints but is not renamed itself. If the second
    checkpoint lacks a, the tensor c was replaced, and the renames are real: for example, layer 0 (c) was removed, and
    all later layers moved down by one. If both checkpoints have all names of the chain, its pairs are left out: for
    example, b is a copy of the old a, and a was trained afterwards.
    """
    left = {key: new for key, new in pairs.items() if new != key}
    old_names = {new: key for key, new in left.items()}
    for last in both & (old_names.keys() - left.keys()):
        chain, key = [], last
        while key in old_names:
            key = old_names[key]
            chain.append(key)
        if key in both:
            for each in chain:
                del left[each]
    return left


def _left_decoded(found: Difference, first: Checkpoint, moved: Set[str]) -> tuple[Pair, ...]:
    """Return the decoded weights of ``found`` that differ, without those whose stored tensors only have other names.

    A weight is left out if all its stored tensors that differ are in ``moved``, the keys of renamed and replaced
    tensors.
    """
    parts = {one.name: one.keys for one in first.codes.tensors}
    left = {pair.key for pair in found.changed if pair.key not in moved}
    gone = {name for name, keys in parts.items() if left.isdisjoint(keys) and any(key in moved for key in keys)}
    return tuple(pair for pair in found.decoded if pair.key not in gone)


ByContent = Mapping[str, list[str]]


def _alike(
    first: Checkpoint, gone: Sequence[str], second: Checkpoint, came: Sequence[str]
) -> tuple[ByContent, ByContent]:
    """Return {digest of the content: keys} for each checkpoint, for tensors whose content may be in both checkpoints.

    ``gone`` and ``came`` are the keys to group in the first and second checkpoint. The first bytes of tensors are
    compared before whole tensors are read.
    """
    makes = {_make(first[key]) for key in gone} & {_make(second[key]) for key in came}
    sides = [(first, _of_makes(first, gone, makes)), (second, _of_makes(second, came, makes))]
    heads = [{key: _head(one, one[key]) for key in keys} for one, keys in sides]
    shared = {*heads[0].values()} & {*heads[1].values()}
    here, there = (
        _by_content(one, [key for key, head in each.items() if head in shared])
        for (one, _), each in zip(sides, heads, strict=True)
    )
    return here, there


def _of_makes(checkpoint: Checkpoint, keys: Sequence[str], makes: Set[Make]) -> list[str]:
    """Return the keys whose tensor can be read and has one of the (dtype, shape) pairs ``makes``.

    The stored checksums of these tensors are checked. Raises FormatError if one is wrong.
    """
    wanted = [key for key in keys if _make(checkpoint[key]) in makes and not checkpoint[key].opaque]
    fetch_keys(checkpoint, wanted)
    check_records(checkpoint, wanted, set())
    return wanted


def _head(checkpoint: Checkpoint, info: TensorInfo) -> tuple[Make, bytes]:
    """Return dtype, shape and the first bytes of a tensor; no bytes if it is not contiguous."""
    if not info.is_plain or info.storage is None:
        return _make(info), b""
    return _make(info), checkpoint.file(info).read(info.storage.offset + info.offset, min(HEAD, info.nbytes))


def _by_content(checkpoint: Checkpoint, keys: Sequence[str]) -> ByContent:
    """Return keys, grouped by the SHA-256 of the tensor's dtype, shape and values."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
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
    """Yield the bytes of a tensor, in the order of its elements, in pieces.

    A contiguous tensor is read as bytes, not as elements, because elements of some dtypes have only 6 bits.
    """
    if not info.is_plain:
        yield from (read_part(checkpoint, info, box).tobytes() for box in blocks(info.shape, ELEMENTS))
        return
    assert info.storage is not None
    file, start = checkpoint.file(info), info.storage.offset + info.offset
    for done in range(0, info.nbytes, BLOCK):
        yield file.read(start + done, min(BLOCK, info.nbytes - done))


def paired(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
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
