"""Quantised tensors that lack a part which all that are stored like them have, or have one of another length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..info import TensorInfo
from ._codes import CodedTensor, Codes
from ._encoding import ACTIVATIONS
from ._methods import family

__all__ = ["Broken", "broken_partners"]

UNKNOWN = ("an", "codes")
"""Families of codes of which no encoding is known."""
ALWAYS = (
    ".qzeros", ".g_idx", ".weight_shape", ".weight_global_scale", ".quant_map", ".nested_absmax", ".nested_quant_map",
    ".zero", ".svh", ".Wscale", ".q_scale_max", ".q_groups", ".q_invperm",
)  # fmt: skip
"""Parts that need not be there, but that all tensors of one model have or none."""
OF_ACTIVATIONS = tuple(end[1:] for end in ACTIVATIONS)
BLOCKS = tuple(1 << power for power in range(4, 17))
USUAL = {".absmax": 64, ".nested_absmax": 256}
"""Lengths of bitsandbytes' blocks, unless others are seen."""

Tensors: TypeAlias = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Broken:
    """Quantised tensors, by ``names``, that have no such ``part``, or one that is not of blocks of ``block``.

    There are ``others`` that are stored like them, and have it.
    """

    part: str
    names: Sequence[str]
    others: int
    block: int = 0


def broken_partners(codes: Codes, tensors: Tensors, elsewhere: Container[str]) -> Iterator[Broken]:
    """Yield the parts that quantised tensors lack; those in other shards, ``elsewhere``, are not lacking."""
    groups: dict[tuple[str, str, int], list[CodedTensor]] = {}
    for one in codes.tensors:
        if one.codes:
            info = tensors[one.codes]
            groups.setdefault((_leaf(one.codes), info.dtype, len(info.shape)), []).append(one)
    without = [one for one in codes.tensors if not one.codes]
    for (leaf, dtype, rank), group in groups.items():
        known = [one for one in group if family(one.method) not in UNKNOWN]
        if known:
            needed = _needed(known)
            found = {one.codes: one.codes for one in group if family(one.method) in UNKNOWN}
            for one in without:
                for key in _codes_of(one, needed, leaf):
                    there = tensors.get(key)
                    if there is None or (there.dtype, len(there.shape)) == (dtype, rank):
                        found[key] = one.name
            yield from _lacking(found, [f".{leaf}", *needed], len(known), tensors, elsewhere)
            yield from _left_out(known, tensors, elsewhere)
    yield from _lengths(codes, tensors)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _beside(one: CodedTensor) -> set[str]:
    """Return how the keys of what decodes codes end behind their module."""
    start = len(one.codes.rpartition(".")[0])
    ends = (key[start:] for key in one.keys if key != one.codes)
    return {end for end in ends if not end.endswith(OF_ACTIVATIONS)}


def _needed(known: Sequence[CodedTensor]) -> list[str]:
    """Return the ends of what lies beside all of the codes."""
    left = _beside(known[0])
    for one in known[1:]:
        left &= _beside(one)
    return sorted(left)


def _codes_of(one: CodedTensor, needed: Sequence[str], leaf: str) -> Iterator[str]:
    """Yield the key that the codes of parts would have."""
    for end in needed:
        yield from (f"{key.removesuffix(end)}.{leaf}" for key in one.keys if key.endswith(end))


def _lacking(
    found: Mapping[str, str], ends: Sequence[str], others: int, tensors: Tensors, elsewhere: Container[str]
) -> Iterator[Broken]:
    """Yield what is lacking of each of the ``ends``, of which those of the codes come first."""
    left = dict(found)
    for end in ends:
        keys = {codes: codes.rpartition(".")[0] + end for codes in left}
        lacking = [codes for codes, key in keys.items() if key not in tensors and key not in elsewhere]
        if lacking:
            yield Broken(end[1:], list(dict.fromkeys(left[codes] for codes in lacking)), others)
        if end == ends[0]:
            left = {codes: name for codes, name in found.items() if codes not in lacking}


def _left_out(known: Sequence[CodedTensor], tensors: Tensors, elsewhere: Container[str]) -> Iterator[Broken]:
    """Yield parts that most have, if all should have those."""
    for end, number in Counter(end for one in known for end in _beside(one) if end.endswith(ALWAYS)).items():
        if len(known) / 2 < number < len(known):
            keys = {one.name: one.codes.rpartition(".")[0] + end for one in known}
            names = [name for name, key in keys.items() if key not in tensors and key not in elsewhere]
            if names:
                yield Broken(end[1:], names, number)


def _lengths(codes: Codes, tensors: Tensors) -> Iterator[Broken]:
    """Yield the scales of bitsandbytes' blocks of which there are more or fewer than the rest of the model has."""
    for end, whole in ((".absmax", ""), (".nested_absmax", ".absmax")):
        possible = dict[str, set[int]]()
        for one in codes.tensors:
            if family(one.method) == "bitsandbytes" and {end, whole} <= one.parts.keys():
                values = tensors[one.parts[whole]].numel if whole else one.parameters or 0
                blocks = tensors[one.parts[end]].numel
                possible[one.name] = {size for size in BLOCKS if -(-values // size) == blocks}
        sizes = Counter(size for each in possible.values() for size in each)
        size = max(sizes, key=lambda size: (sizes[size], size == USUAL[end], -size), default=USUAL[end])
        names = [name for name, each in possible.items() if size not in each]
        if names:
            yield Broken(end[1:], names, len(possible) - len(names), size)
