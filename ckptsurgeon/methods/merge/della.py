"""DELLA: drop a model's changes at random, small changes of a row with a higher probability than large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ._method import Between, PerModel, merge_method
from ._slices import Merging, Slice, Tensors, like, row_length
from .arithmetic.deltas import DeltaMixing, Masks, mixed

__all__ = ["METHODS"]

_PAPER = "https://arxiv.org/abs/2406.11617"


@merge_method(
    "della",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6 if no change is dropped at random",
    base="required",
    by_rows=True,
    passes=2,
)
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
    """Return the base plus the mean of randomly kept changes that have the sign of the majority.

    Changes are kept as in della_linear. If models disagree in an element, changes against the sign of the weighted sum
    are dropped, as in ties. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_, elect=True)
    return mixed(tensors, _ranked(tensors, density, epsilon), how, row_length(tensors))


@merge_method(
    "della_linear",
    paper=_PAPER,
    compared="mergekit 0.1.5: equal within 1e-6 if no change is dropped at random",
    base="required",
    by_rows=True,
    passes=2,
)
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
    """Return the base plus the weighted sum of randomly kept changes, large ones with a higher probability.

    The smallest magnitude of a row is kept with the probability ``density - epsilon``, the largest with ``density +
    epsilon``. With ``rescale`` the kept changes are multiplied so that the sum of magnitudes is as before. A row is all
    of the last dimension; mergekit ranks along the second dimension. ``int8_mask`` has no effect.
    """
    how = DeltaMixing(weight, normalize, rescale, lambda_)
    return mixed(tensors, _ranked(tensors, density, epsilon), how, row_length(tensors))


def _ranked(tensors: Tensors, density: Sequence[float], epsilon: Sequence[float]) -> Masks:
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and (share - spread <= 0 or share + spread >= 1):
            raise ConfigError(
                f"density {share:g} with epsilon {spread:g} keeps changes with probabilities from {share - spread:g} "
                f"to {share + spread:g}; all of them must be above 0 and below 1.",
                hint="Give a smaller epsilon.",
            )

    def masks(at: Slice, model: int, delta: Array) -> Array | bool:
        if not 0 < density[model] < 1:
            return density[model] > 0
        chance = _ranks(at, delta) * (2 * epsilon[model]) + (density[model] - epsilon[model])
        mask: Array = tensors.uniform(at, model) < chance
        return mask

    return masks


def _ranks(at: Slice, delta: Array) -> Array:
    """Return the rank of each magnitude in its row, from 0 (smallest) to 1.

    Of equal magnitudes, the first has the lower rank. In a row with one element the rank is a half.
    """
    rows, size = delta.shape
    if size == 1:
        half: Array = at.xp.full_like(delta, 0.5)
        return half
    order = _order(at, at.xp.abs(delta))
    ranks: Array = at.xp.empty_like(delta)
    ranks[at.xp.reshape(at.xp.arange(rows), (-1, 1)), order] = like(delta, np.linspace(0, 1, size), at)
    return ranks


def _order(at: Slice, sizes: Array) -> Array:
    """Return the indices that sort the magnitudes of each row, smallest first; equal magnitudes stay in order."""
    if not isinstance(sizes, np.ndarray) or sizes.dtype != np.float32:
        order: Array = at.xp.argsort(sizes, stable=True)
        return order
    # Bits and position in one integer: numpy sorts these many times faster than it sorts positions by magnitude.
    keys = sizes.view("<u4").astype("<u8")
    keys <<= 32
    keys |= np.arange(sizes.shape[1], dtype="<u8")
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys.view("<i8")


METHODS = (della, della_linear)
