"""The content of a page before merging: layers with opposed changes of models, and the results of methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..util.short_repr import Brief
from ..util.text import natural_key
from .compare.changes import Agreement, Changes, ChangeSums, TensorChanges, layer_of, weights_of
from .compare.sums import Sum, norm, quotient

__all__ = ["MOST", "Conflict", "MergeSurvey", "MethodSurvey", "SampledModel", "conflicts_of"]

# Layers in which the changes of two models oppose each other.

MOST = 50
"""At most this many layers are listed; the others are counted."""
NAMED = 5
"""At most this many tensors of a layer are named."""
OPPOSED = 0.05
"""Changes oppose each other if their cosine is below minus this number, or if 5 % more signs differ than agree."""
DEVIATIONS = 3.0
"""An opposition below three standard deviations counts as chance.

The standard deviation is that of the opposition of random changes with as many values.
"""


@dataclass(frozen=True, repr=False)
class Conflict(Brief):
    """A layer, or a tensor, in which the changes of a pair of models oppose each other.

    ``weight`` is the sum, over the tensors of the layer, of the share of the tensor times its opposition. The share is
    the product of the norms of both changes, divided by the same product for all tensors of the model. The opposition
    ranges from 0 (none) to 1 (the cosine of the changes is -1, or all values move in opposite directions). ``tensors``
    are the tensors of a layer in which the changes oppose each other, the largest weight first; ``agreement`` sums them
    up.
    """

    name: str
    pair: tuple[int, int]
    weight: float
    agreement: Agreement
    tensors: tuple[Conflict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the conflict as plain data; at most ``NAMED`` of the tensors of a layer are named."""
        return {
            "name": self.name,
            "models": list(self.pair),
            "weight": self.weight,
            "cosine": self.agreement.cosine,
            "same_sign": self.agreement.share_of_same_sign,
        }

    def layer_json(self) -> dict[str, Any]:
        """Return the conflict of a layer as plain data, with the tensors of the largest weights."""
        named = [one.to_json() for one in self.tensors[:NAMED]]
        return {**self.to_json(), "tensors": named, "more_tensors": len(self.tensors) - len(named)}


def conflicts_of(changes: Changes) -> tuple[Conflict, ...]:
    """Return the layers in which models' changes oppose each other, the largest weight first."""
    weights, total = weights_of(changes.tensors), changes.total
    layers: dict[tuple[str, tuple[int, int]], list[Conflict]] = {}
    for one in weights:
        for found in _of_tensor(one, total):
            layers.setdefault((layer_of(one.key), found.pair), []).append(found)
    every = [_layer(name, pair, some) for (name, pair), some in layers.items()]
    return _sorted(every)


def _layer(name: str, pair: tuple[int, int], some: Sequence[Conflict]) -> Conflict:
    agreement = sum((one.agreement for one in some), Agreement())
    return Conflict(name, pair, math.fsum(one.weight for one in some), agreement, _sorted(some))


def _of_tensor(one: TensorChanges, total: ChangeSums) -> Iterator[Conflict]:
    for pair, agreement in one.sums.pairs.items():
        opposed = _opposed(agreement, one.sums, pair)
        share = _share(agreement, total.pairs[pair])
        if opposed and share:
            yield Conflict(one.key, pair, opposed * share, agreement)


def _sorted(some: Iterable[Conflict]) -> tuple[Conflict, ...]:
    return tuple(sorted(some, key=lambda one: (-one.weight, natural_key(one.name), one.pair)))


def _share(of: Agreement, total: Agreement) -> float:
    """Return the product of the norms of both changes of a tensor, divided by the same product for all tensors."""
    first, second = norm(of.first), norm(of.second)
    product = Sum(first.value * second.value, first.exponent + second.exponent)
    return quotient(product, norm(total.first), norm(total.second)) or 0.0


def _opposed(one: Agreement, sums: ChangeSums, pair: tuple[int, int]) -> float:
    """Return how much two changes of a tensor oppose each other, from 0 to 1: the larger of two measures.

    The first measure is the negative cosine. The second measures opposite signs. It is multiplied by the number of
    values that both models changed, and divided by the number of values that the model with fewer changes changed.
    """
    cosine, same = one.cosine, one.share_of_same_sign
    if cosine is None or same is None:
        return 0.0  # no value is changed by both
    least = max(OPPOSED, DEVIATIONS / math.sqrt(one.both))
    by_cosine, excess = -cosine if cosine < -least else 0.0, 1 - 2 * same
    if excess <= least:
        return by_cosine
    fewest = min(sums.models[index].changed for index in pair)
    return max(by_cosine, excess * one.both / max(1, fewest))


# The share of each change that methods would keep.


@dataclass(frozen=True, repr=False)
class SampledModel(Brief):
    """The shares of a model's change that remain in a method's result, from 0 to 1; None if not known.

    ``trimmed`` is the share of the changed values that trimming leaves, ``elected`` the share that also remains after
    the election of signs. ``kept`` is the share of the change that the result has: the length of the result's
    projection on the change, divided by the length of the change.
    """

    trimmed: float | None
    elected: float | None
    kept: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the shares as plain data."""
        return {"trimmed": self.trimmed, "elected": self.elected, "kept": self.kept}


@dataclass(frozen=True, repr=False)
class MethodSurvey(Brief):
    """The result of a merge method for the sampled values.

    ``parameters`` are the parameters that do not have the method's defaults. ``is_planned`` is true for a method of the
    plan, with the plan's parameters. ``norm`` is the norm of the merged change, divided by the mean of the norms of the
    models' changes. If the method was not tried, ``why`` is the reason.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_planned: bool = False
    models: tuple[SampledModel, ...] = ()
    norm: float | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "method": self.method,
            "planned": self.is_planned,
            "parameters": dict(self.parameters),
            "models": [one.to_json() for one in self.models],
            "norm": self.norm,
            "why": self.why or None,
        }


@dataclass(frozen=True, repr=False)
class MergeSurvey(Brief):
    """A survey of models before they are merged: their changes, their conflicts, and the results of merge methods.

    ``changes`` and ``conflicts`` come from all values, ``methods`` from a sample. ``sampled`` is the number of values
    in the sample, ``values`` the number of all values that are merged.
    """

    changes: Changes
    conflicts: tuple[Conflict, ...]
    methods: tuple[MethodSurvey, ...]
    sampled: int
    values: int

    @property
    def opposition(self) -> float:
        """The sum of ``Conflict.weight`` over all conflicts; 0 if there are none."""
        return math.fsum(one.weight for one in self.conflicts)

    def to_json(self) -> dict[str, Any]:
        """Return the survey as plain data, with the first ``MOST`` conflicts and the number of further conflicts.

        ``changes`` is the output of ``ckpt diff BASE A B --json``.
        """
        return {
            "changes": self.changes.to_json(),
            "conflicts": [one.layer_json() for one in self.conflicts[:MOST]],
            "more_conflicts": len(self.conflicts[MOST:]),
            "opposition": self.opposition,
            "methods": [one.to_json() for one in self.methods],
            "sampled": self.sampled,
            "values": self.values,
        }
