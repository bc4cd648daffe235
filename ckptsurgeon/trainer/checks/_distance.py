"""How far a tensor is from draws of the same make, in standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["FEW_VALUES", "MAX_Z", "z_score"]

MAX_Z = 6.0
"""Standard errors that a mean or a deviation may be off: by chance once in 500 million."""
FEW_VALUES = 30
"""Fewer values than this are held against exact bounds, not against what holds for many."""
UNUSUAL_Z = 4.0
"""Where draws themselves are so far apart, a bound says nothing: their values do not vary one by one."""


def z_score(value: Tensor, others: Sequence[Tensor]) -> float:
    """Return how far a tensor is from others of its make; infinite for another constant."""
    if torch.equal(others[0], others[1]):  # nothing is random about it
        return 0.0 if torch.equal(value, others[0]) else math.inf
    mine, theirs = value.double().flatten(), torch.stack(list(others)).double().flatten(1)
    if not torch.isfinite(mine).all():
        return math.inf
    if mine.numel() >= FEW_VALUES:
        return _of_many(mine, theirs.flatten())
    usual = torch.stack([_of_few(one, theirs.flatten()) for one in theirs]).amax(0)
    found = torch.where(usual < UNUSUAL_Z, _of_few(mine, theirs.flatten()), 0.0)
    return float(found.max())


def _of_few(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the distances of mean, deviation and furthest value by what is exact for normal values.

    A mean of n, n - 1 variances (chi-squared), and the furthest of n; uniform values keep to tighter bounds still.
    """
    n, centre, spread = mine.numel(), theirs.mean(), theirs.std().clamp(min=1e-300)
    mean_z = (mine.mean() - centre).abs() / (spread * math.sqrt(1 / n + 1 / theirs.numel()))
    alone = torch.special.ndtr(-((mine - centre).abs().max() / spread))
    furthest_z = _z(2 * n * alone)
    if n == 1:
        return torch.stack([mean_z, torch.zeros_like(mean_z), furthest_z])
    half = torch.tensor((n - 1) / 2, dtype=torch.float64)
    squares = half * mine.var() / spread**2
    less, more = torch.special.gammainc(half, squares), torch.special.gammaincc(half, squares)
    return torch.stack([mean_z, _z(2 * torch.minimum(less, more)), furthest_z])


def _z(chance: Tensor) -> Tensor:
    """Return the standard errors beyond which a normal value is with a chance, on both sides together."""
    found: Tensor = -torch.special.ndtri(chance.clamp(1e-300, 1) / 2)
    return found


def _of_many(mine: Tensor, theirs: Tensor) -> float:
    centre, spread = theirs.mean(), theirs.std()
    share = 1 / mine.numel() + 1 / theirs.numel()
    mean_z = (mine.mean() - centre).abs() / (spread * math.sqrt(share))
    fourth = ((theirs - centre) ** 4).mean()
    error = ((fourth - spread**4).clamp(min=1e-3 * spread**4) * share).sqrt()  # of a variance
    spread_z = (mine.var() - spread**2).abs() / error
    width = theirs.max() - theirs.min()
    beyond = torch.maximum(mine.max() - theirs.max(), theirs.min() - mine.min()) / width.clamp(min=1e-300)
    bounds_z = MAX_Z * 2 * float(beyond) if float(beyond) > 0.5 else 0.0  # half as wide again as was ever drawn
    return max(float(mean_z), float(spread_z), bounds_z)
