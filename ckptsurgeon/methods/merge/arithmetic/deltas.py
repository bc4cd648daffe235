"""Functions for merge methods that add the models' differences to the base, called deltas.

Elements of a delta may be dropped: by a mask, or because they do not have the sign of the majority.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from ....tensors.ops.regions import Array
from .._slices import Merging, Slice, Tensors, in_pieces, pieces
from ..linear import cancel, check_some, held, shares

__all__ = ["DeltaMixing", "KeptElements", "Masks", "StagedMerging", "agreement", "everything", "mixed"]

Masks: TypeAlias = Callable[[Slice, int, Array], Array | bool]
"""A function that returns a mask of the elements of a model's delta to keep in a piece.

True for all, False for none.
"""


@dataclass(frozen=True)
class KeptElements:
    """How many elements of a model's difference to the base are left after each stage of a merge.

    ``changed`` counts the elements that are not zero, and ``trimmed`` the changed elements that the mask keeps.
    ``elected`` counts the kept elements that have the sign of the majority (None if the method elects no sign).
    """

    changed: int
    trimmed: int
    elected: int | None = None

    def __add__(self, other: KeptElements) -> KeptElements:
        elected = None if self.elected is None or other.elected is None else self.elected + other.elected
        return KeptElements(self.changed + other.changed, self.trimmed + other.trimmed, elected)


@dataclass(frozen=True)
class StagedMerging:
    """A function that merges a slice, and ``kept``, which counts the values of each model's difference that remain."""

    merge: Merging
    kept: Callable[[Slice], list[KeptElements]]

    def __call__(self, at: Slice) -> Array:
        """Return the merged values of a slice."""
        return self.merge(at)


_TINY = 1e-7
"""Sums of magnitudes below this are taken as zero, as in mergekit."""


@dataclass(frozen=True)
class DeltaMixing:
    """How deltas (the models' differences to the base) are added: ``weight`` has the weight of each model.

    ``elect`` drops elements with the minority's sign. ``normalize`` divides by the sum of the weights. With both, each
    element is divided by the sum of the weights of the models in the majority there. If this sum is zero (weights 1 and
    -1), the element is not divided, as in mergekit. ``rescale`` multiplies each delta that has lost elements, so that
    its sum of magnitudes is the same as before. ``scale`` multiplies the result.

    Raises PlanError, before any tensor is read, if it would divide by weights that sum to zero or are all zero.
    """

    weight: Sequence[float]
    normalize: bool
    rescale: bool
    scale: float
    elect: bool = False

    def __post_init__(self) -> None:
        if self.normalize and self.elect:
            check_some(self.weight)
        elif self.normalize:
            shares(self.weight)

    @property
    def factors(self) -> Sequence[float]:
        """The factor of each delta: its share of the weights if they are normalised, else its weight."""
        if not self.normalize:
            return self.weight
        return held(self.weight) if self.elect else shares(self.weight)


def everything(at: Slice, model: int, delta: Array) -> bool:
    """Return True: as a mask, it keeps all elements of a model's difference to the base."""
    return True


def agreement(at: Slice, deltas: Sequence[Array]) -> list[Array]:
    """Return, for each element of each delta, 1 if it has the sign of the sum of all deltas, else 0.

    A sum of zero counts as positive.
    """
    sign = sum(deltas[1:], deltas[0])
    sign = at.xp.copysign(at.xp.ones_like(sign), sign)
    return [at.xp.asarray(delta * sign > 0, dtype=sign.dtype) for delta in deltas]


def mixed(tensors: Tensors, masks: Masks, how: DeltaMixing, columns: int | None = None) -> Merging:
    """Return a function that merges: the base plus the weighted sum of the models' differences to the base.

    ``masks`` returns which elements of the differences are kept; ``how`` has the weights. With ``columns`` the tensors
    are merged in pieces with whole rows of this length.
    """
    growth = _growth(tensors, masks, columns) if how.rescale else [1.0] * tensors.count
    factors = [factor * grown for factor, grown in zip(how.factors, growth, strict=True)]
    widened = how.normalize and not how.elect and cancel(how.weight)  # elected signs follow mergekit's float32

    def weighted(at: Slice) -> list[Array]:
        deltas = [_kept(at, delta, masks(at, model, delta)) for model, delta in enumerate(at.deltas)]
        if widened:
            deltas = list(at.wide(deltas))
        for delta, factor in zip(deltas, factors, strict=True):
            if factor != 1:
                delta *= factor
        return deltas

    def merged(at: Slice) -> Array:
        deltas = weighted(at)
        total = _elected(at, deltas, how) if how.elect else _added(deltas)
        if how.scale != 1:
            total *= how.scale
        return at.onto(total)

    def kept(at: Slice) -> list[KeptElements]:
        found = [_count(piece, masks, weighted(piece) if how.elect else ()) for piece in pieces(at, columns=columns)]
        return [sum(of[1:], of[0]) for of in zip(*found, strict=True)]

    return StagedMerging(in_pieces(merged, columns), kept)


def _count(at: Slice, masks: Masks, weighted: Sequence[Array]) -> list[KeptElements]:
    """Return, for each model, how many elements of its delta in a piece are left after each stage of the merge.

    ``weighted`` are the weighted deltas, whose sum determines the sign of the majority; () if no sign is elected.
    """
    number = at.xp.count_nonzero
    agree = agreement(at, weighted) if weighted else ()
    found = []
    for model, delta in enumerate(at.deltas):
        elected = int(number(weighted[model] * agree[model])) if weighted else None
        before = int(number(delta))
        found.append(KeptElements(before, int(number(_kept(at, delta, masks(at, model, delta)))), elected))
    return found


def _kept(at: Slice, delta: Array, mask: Array | bool) -> Array:
    """Return a delta in which elements that ``mask`` does not keep are 0; ``delta`` may be overwritten."""
    kept: Array = at.xp.zeros_like(delta) if mask is False else delta
    if not isinstance(mask, bool):
        kept *= mask
    return kept


def _elected(at: Slice, deltas: Sequence[Array], how: DeltaMixing) -> Array:
    """Return, for each element, the sum of the deltas that have the sign of the majority.

    With ``normalize``, the sum is divided by the sum of the weights of these deltas.
    """
    agree = agreement(at, deltas)
    for delta, mask in zip(deltas, agree, strict=True):
        delta *= mask
    total = _added(deltas)
    if how.normalize:
        for mask, weight in zip(agree, how.factors, strict=True):
            mask *= weight
        whole = _added(agree)
        noise = 4 * at.xp.finfo(whole.dtype).eps * sum(map(abs, how.factors)) if min(how.factors) < 0 else 0.0
        whole[abs(whole) <= noise] = 1  # weights that cancel up to rounding
        total /= whole
    return total


def _added(parts: Sequence[Array]) -> Array:
    """Return the sum of arrays, computed in place in the first of them."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _growth(tensors: Tensors, masks: Masks, columns: int | None) -> list[float]:
    """Return, for each model, the factor by which ``rescale`` multiplies the kept elements of its delta.

    It is the sum of the magnitudes of all elements, divided by the sum of the kept magnitudes; 1 if one of these sums
    is nearly zero.
    """

    def sums(at: Slice) -> list[tuple[int, float, float]]:
        return list(chain.from_iterable(_sums(piece, masks) for piece in pieces(at, columns=columns)))

    growth = [1.0] * tensors.count
    found = list(chain.from_iterable(tensors.map(sums)))
    for model in range(tensors.count):
        before = math.fsum(all_of_it for number, all_of_it, _ in found if number == model)
        after = math.fsum(kept for number, _, kept in found if number == model)
        if before >= _TINY and after >= _TINY:
            growth[model] = before / after
    return growth


def _sums(at: Slice, masks: Masks) -> list[tuple[int, float, float]]:
    """Return (model, sum of the magnitudes of its delta, sum of the kept magnitudes) for each model with a mask."""
    found = []
    for model, delta in enumerate(at.deltas):
        mask = masks(at, model, delta)
        if isinstance(mask, bool):
            continue
        size = at.xp.abs(delta)
        before = float(at.xp.sum(size, dtype=at.xp.float64))
        found.append((model, before, float(at.xp.sum(size * mask, dtype=at.xp.float64))))
    return found
