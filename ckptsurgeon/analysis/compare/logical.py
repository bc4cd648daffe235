"""Compares quantised tensors by their decoded weights, under the names that the weights have in a plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.operations.perform import Weights
from ...tensors.info import Decoded, TensorInfo
from ...tensors.quantised.encoding import QuantisedTensor
from ...tensors.torch_quantisers import is_pickled
from .outline import Outline
from .results import UNREAD, Pair

__all__ = ["EncodedOtherwise", "by_name", "coded_in_both", "encoded_otherwise"]


@dataclass(frozen=True)
class EncodedOtherwise:
    """The weights that two checkpoints store in different encodings; one of the encodings may be plain numbers.

    ``pairs`` has these weights by their logical names (their names in a plain model). ``parts`` has the keys of their
    stored tensors in each checkpoint. ``refused`` maps the names of weights that cannot be decoded to the reason.
    """

    pairs: Mapping[str, Pair] = field(default_factory=dict)
    parts: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    refused: Mapping[str, str] = field(default_factory=dict)

    def within(self, first: Outline, second: Outline) -> tuple[Outline, Outline]:
        """Return the outlines of two checkpoints with the decoded weights in place of the tensors that store them."""
        here = {name: pair.first for name, pair in self.pairs.items()}
        there = {name: pair.second for name, pair in self.pairs.items()}
        both = coded_in_both(first, second)
        return _replaced(first, self.parts[0], here, both), _replaced(second, self.parts[1], there, both)


def coded_in_both(first: Outline, second: Outline) -> set[tuple[str, str]]:
    """Return (quantisation method, name) of the tensors that two checkpoints quantise by the same method."""
    return {*first.coded.values()} & {*second.coded.values()}


def _replaced(
    outline: Outline, parts: frozenset[str], weights: Mapping[str, TensorInfo], both: set[tuple[str, str]]
) -> Outline:
    kept = {key: info for key, info in outline.tensors.items() if key not in parts}
    coded = {key: said for key, said in outline.coded.items() if key not in parts or said in both}
    return replace(outline, tensors={**kept, **weights}, coded=coded)


def encoded_otherwise(first: Checkpoint, second: Checkpoint, weights: Sequence[Weights]) -> EncodedOtherwise:
    """Return the weights that two checkpoints encode differently; at least one of the two quantises such a weight.

    ``weights`` are two functions, one for each checkpoint, which return the decoded values of a quantised tensor. If a
    weight cannot be decoded, the reason is in ``refused`` of the result.
    """
    here, there = by_name(first), by_name(second)
    pairs, refused = dict[str, Pair](), dict[str, str]()
    parts: tuple[set[str], set[str]] = (set(), set())
    for name in dict.fromkeys((*here, *there)):
        one, other = here.get(name), there.get(name)
        if not (_has(first, name, one) and _has(second, name, other)):
            continue
        if one and other and _is_same(one, other, first, second, weights):
            continue
        parts[0].update(one.keys if one else [name])
        parts[1].update(other.keys if other else [name])
        try:
            a, b = _weight(first, name, one, weights[0]), _weight(second, name, other, weights[1])
        except PlanError as error:
            refused[name], a, b = error.message.rstrip("."), UNREAD, UNREAD
        pairs[name] = Pair(name, a, b, encodings=(_called(one, a), _called(other, b)))
    return EncodedOtherwise(pairs, (frozenset(parts[0]), frozenset(parts[1])), refused)


def by_name(checkpoint: Checkpoint) -> dict[str, QuantisedTensor]:
    """Return the quantised tensors of a checkpoint that have codes, by their logical names."""
    return {one.name: one for one in checkpoint.codes.tensors if one.codes}


def _has(checkpoint: Checkpoint, name: str, coded: QuantisedTensor | None) -> bool:
    """Return whether a checkpoint has the tensor ``name``: quantised (``coded`` is not None) or as plain numbers."""
    return coded is not None or (name in checkpoint and name not in checkpoint.codes.by_key)


def _weight(checkpoint: Checkpoint, name: str, coded: QuantisedTensor | None, weights: Weights) -> TensorInfo:
    found = weights(coded.codes) if coded is not None else None
    return found.info if found is not None else checkpoint[name]


def _called(coded: QuantisedTensor | None, info: TensorInfo) -> str:
    return coded.method if coded is not None else info.dtype


def _is_same(
    one: QuantisedTensor, other: QuantisedTensor, first: Checkpoint, second: Checkpoint, weights: Sequence[Weights]
) -> bool:
    """Return whether two quantised tensors have the same encoding, so that equal bytes mean equal weights."""
    if one.method != other.method or one.parts.keys() != other.parts.keys():
        return False
    pairs = ((first[key], second[other.parts[end]]) for end, key in one.parts.items())
    if any((a.dtype, a.shape) != (b.dtype, b.shape) or is_pickled(a) for a, b in pairs):
        return False
    if first.quantisation == second.quantisation:
        return True
    try:
        found = [give(coded.codes) for coded, give in zip((one, other), weights, strict=True)]
    except PlanError:  # one cannot be decoded: only the bytes can be compared
        return True
    facts = [
        (made.encoding, made.facts) for weight in found if weight and isinstance(made := weight.info.made, Decoded)
    ]
    return len(set(facts)) == 1
