"""TIES of matrices that are given in a basis that all of them share: the last step of KnOTS, of weights or adapters."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ....tensors.ops.regions import Array
from .pieces import on_host

__all__ = ["ties_in_basis"]


def ties_in_basis(xp: ModuleType, parts: Sequence[Array], density: float, nothing: float) -> Array:
    """Return the mean of the largest values that have the sign of the majority; ``parts`` are overwritten.

    Of each matrix in ``parts``, the share ``density`` with the largest magnitudes is kept, at least one value. Values
    up to ``nothing`` times the largest of their matrix count as zero. ``xp`` is numpy or torch.
    """
    kept = [_largest(xp, one, density, nothing) for one in parts]
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
    """Return a matrix in which all but the share ``density`` of the largest magnitudes are zero; at least one stays.

    Magnitudes that only rounding left are zero, too: TIES would count their signs.
    """
    size = values.shape[0] * values.shape[1]
    number = max(1, int(density * size)) if density else 0
    magnitudes = xp.abs(values)
    values *= magnitudes > nothing * float(xp.max(magnitudes))
    if 0 < number < size:
        least = np.partition(on_host(magnitudes).reshape(-1), size - number)[size - number]
        values *= magnitudes >= float(least)
    return values if number else values * 0.0
