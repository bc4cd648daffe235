"""DELLA: what a model has learned dropped at random, the smaller a change in its row the likelier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ..errors import ConfigError
from ..ops import Array
from ._method import Merging, Slice, Tensors, merge_method
from ._parameters import Between, PerModel
from ._pieces import row_length
from ._tasks import Masks, Mixing, mixed

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2406.11617"


@merge_method("della", paper=_PAPER, base="required", by_rows=True)
def della(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    epsilon: Annotated[PerModel, Between(0, 1)] = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base and the mean of changes that are kept at random by rank, of those with the majority's sign.

    As della_linear, and then as TIES does where models disagree. ``int8_mask`` changes nothing.
    """
    how = Mixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _ranked(tensors, density, epsilon), how, row_length(tensors))


@merge_method("della_linear", paper=_PAPER, base="required", by_rows=True)
def della_linear(
    tensors: Tensors,
    *,
    weight: PerModel = (1.0,),
    density: Annotated[PerModel, Between(0, 1)] = (1.0,),
    epsilon: Annotated[PerModel, Between(0, 1)] = (0.15,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Merging:
    """Return the base and the weighted sum of changes that are kept at random, by their rank in their row.

    The smallest magnitude of a row is kept with the probability ``density - epsilon``, the largest with
    ``density + epsilon``; with ``rescale`` what is kept is multiplied so that the sum of its magnitudes is what it was.
    ``int8_mask`` changes nothing.
    """
    how = Mixing(weight, normalize, rescale, lambda_)
    return mixed(tensors, _ranked(tensors, density, epsilon), how, row_length(tensors))


def _ranked(tensors: Tensors, density: Sequence[float], epsilon: Sequence[float]) -> Masks:
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not (0 < share - spread and share + spread < 1):
            raise ConfigError(
                f"density {share:g} with epsilon {spread:g}: the probabilities to keep a change go from "
                f"{share - spread:g} to {share + spread:g}, not between 0 and 1.",
                hint="Give a smaller epsilon.",
            )

    def masks(at: Slice, model: int, delta: Array) -> Array | None:
        if density[model] >= 1:
            return None
        spread = epsilon[model] if density[model] > 0 else 0.0
        chance = _ranks(at, delta) * (2 * spread) + (density[model] - spread)
        mask: Array = tensors.uniform(at, model) < chance
        return mask

    return masks


def _ranks(at: Slice, delta: Array) -> Array:
    """Return the rank of each magnitude in its row, from 0 to 1; of equal ones the first is the smaller.

    In a row of one it is a half.
    """
    rows, size = delta.shape
    if size == 1:
        return at.xp.full_like(delta, 0.5)
    order = at.xp.argsort(at.xp.abs(delta), stable=True)
    ranks = at.xp.empty_like(delta)
    ranks[at.xp.reshape(at.xp.arange(rows), (-1, 1)), order] = at.xp.linspace(0, 1, size, dtype=delta.dtype)
    return ranks


METHODS = (della, della_linear)
