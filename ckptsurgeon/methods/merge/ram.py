"""Reinforced agent merging: adds changes of a single model in full, and shared changes as their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ...tensors.ops.regions import Array
from ._method import Between, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces, pieces

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2601.13572"


@merge_method("ram", paper=_PAPER, compared="mergekit 0.1.5: equal within 1e-6", base="required", elementwise=True)
def ram(tensors: Tensors, *, epsilon: Annotated[float, Between(0)] = 1e-5) -> Merging:
    """Return the base plus, for each element, the mean of the models' differences larger than ``epsilon``.

    The mean is over the models whose difference to the base has a magnitude that exceeds ``epsilon`` in this element.
    """
    return _merged(tensors, epsilon, [1.0] * tensors.count)


@merge_method("ramplus_tl", paper=_PAPER, compared="mergekit 0.1.5: equal within 1e-6", base="required", passes=2)
def ramplus_tl(
    tensors: Tensors,
    *,
    r: Annotated[float, Between(0)] = 0.1,
    alpha: Annotated[float, Between(0)] = 0.2,
    epsilon: Annotated[float, Between(0)] = 1e-5,
) -> Merging:
    """Return the result of ``ram`` with larger deltas for elements that only one model has changed.

    Such a delta is multiplied by 1 + ``r`` * min(s / u, ``alpha``). Here s is the number of elements of the tensor that
    the model and at least one other model have changed, and u is the number of elements that only this model has
    changed.
    """
    shared, alone = _counts(tensors, epsilon)
    ratios = [both / max(own, epsilon) if both else 0.0 for both, own in zip(shared, alone, strict=True)]
    return _merged(tensors, epsilon, [1 + r * min(ratio, alpha) for ratio in ratios])


def _masks(at: Slice, deltas: Sequence[Array], epsilon: float) -> tuple[list[Array], Array]:
    """Return a mask of the changed elements (1 or 0) for each delta, and the number of models that change each element.

    An element is changed if its difference to the base is larger than ``epsilon``.
    """
    masks = [at.xp.asarray(at.xp.abs(delta) > epsilon, dtype=delta.dtype) for delta in deltas]
    return masks, sum(masks[1:], masks[0])


def _counts(tensors: Tensors, epsilon: float) -> tuple[list[int], list[int]]:
    """Return, for each model, how many elements it and another model have changed, and how many only it has changed."""

    def look(at: Slice) -> list[tuple[int, int]]:
        found = [(0, 0)] * tensors.count
        for piece in pieces(at):
            masks, count = _masks(piece, piece.deltas, epsilon)
            for model, mask in enumerate(masks):
                changed = int(at.xp.count_nonzero(mask))
                own = int(at.xp.count_nonzero(mask * (count == 1)))
                found[model] = (found[model][0] + changed - own, found[model][1] + own)
        return found

    by_model = list(zip(*tensors.map(look), strict=True))
    shared = [sum(both for both, _ in one) for one in by_model]
    return shared, [sum(own for _, own in one) for one in by_model]


def _merged(tensors: Tensors, epsilon: float, raised: Sequence[float]) -> Merging:
    def merged(at: Slice) -> Array:
        deltas = at.deltas
        masks, count = _masks(at, deltas, epsilon)
        total = at.xp.zeros_like(deltas[0])
        for delta, mask, factor in zip(deltas, masks, raised, strict=True):
            delta *= mask
            if factor != 1:
                delta *= (count == 1) * (factor - 1) + 1
            total += delta
        total /= at.xp.clip(count, 1, None)
        return at.onto(total)

    return in_pieces(merged)


METHODS = (ram, ramplus_tl)
