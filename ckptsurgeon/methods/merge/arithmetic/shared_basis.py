"""Merges matrices that are given in a basis that all of them share: the last step of KnOTS, for weights and adapters.

The methods are the sum (task arithmetic), TIES, and DARE followed by the signs of TIES. The paper,
https://arxiv.org/abs/2410.19735, applies them to the singular values times the part V_i of each model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeAlias

import numpy as np

from ....tensors.ops.regions import Array
from .._slices import on_host

__all__ = ["Uniform", "dare_ties_in_basis", "sum_in_basis", "ties_in_basis"]

Uniform: TypeAlias = Callable[[int, tuple[int, ...]], Array]
"""A function that returns random numbers in [0, 1); its arguments are the index of a model and a shape."""


def sum_in_basis(parts: Sequence[Array]) -> Array:
    """Return the sum of all matrices; the first of ``parts`` is overwritten."""
    total = parts[0]
    for one in parts[1:]:
        total += one
    return total


def ties_in_basis(xp: ModuleType, parts: Sequence[Array], density: float, nothing: float) -> Array:
    """Return the mean of the largest values that have the sign of the majority; ``parts`` are overwritten.

    Of each matrix in ``parts``, the share ``density`` with the largest magnitudes is kept: at least one value, unless
    ``density`` is 0. Values up to ``nothing`` times the largest of their matrix count as zero. ``xp`` is numpy or
    torch.
    """
    return _of_majority(xp, [_largest(xp, one, density, nothing) for one in parts])


def dare_ties_in_basis(
    xp: ModuleType, parts: Sequence[Array], density: float, nothing: float, uniform: Uniform
) -> Array:
    """Return the mean of values, kept at random, that have the sign of the majority; ``parts`` are overwritten.

    Each value is kept with the probability ``density``, and divided by it, so that the sum of values is about as
    before. Values up to ``nothing`` times the largest of their matrix count as zero.
    """
    kept = []
    for number, one in enumerate(parts):
        values = _largest(xp, one, 1.0 if density else 0.0, nothing)
        if 0 < density < 1:
            values *= uniform(number, tuple(values.shape)) < density
            values /= density
        kept.append(values)
    return _of_majority(xp, kept)


def _of_majority(xp: ModuleType, kept: Sequence[Array]) -> Array:
    """Return, for each element, the mean of the models' nonzero values that have the sign of the sum of all models."""
    total = kept[0] + 0.0
    for one in kept[1:]:
        total += one
    agreed: Array = xp.zeros_like(total)
    number = xp.zeros_like(total)
    for one in kept:
        mask = one * total > 0
        agreed += one * mask
        number += mask
    agreed /= xp.clip(number, 1, None)
    return agreed


def _largest(xp: ModuleType, values: Array, density: float, nothing: float) -> Array:
    """Return the matrix with only the share ``density`` of the largest magnitudes; other values are zero.

    At least one value is kept, unless ``density`` is 0. Values that are only rounding errors become zero, too, because
    TIES would count their signs.
    """
    size = values.shape[0] * values.shape[1]
    number = max(1, int(density * size)) if density else 0
    magnitudes = xp.abs(values)
    values *= magnitudes > nothing * float(xp.max(magnitudes))
    if 0 < number < size:
        least = np.partition(on_host(magnitudes).reshape(-1), size - number)[size - number]
        values *= magnitudes >= float(least)
    return values if number else values * 0.0
