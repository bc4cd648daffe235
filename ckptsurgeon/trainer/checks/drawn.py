"""Tensors that no source gave look like what their declared initialiser draws."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ...target import TargetSpec
from ...text import count, escape, listing
from ..job import drawn, tensors_of
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["drawn_fit"]

NAME = "initialised tensors fit"
WORST = 6.0
"""Standard errors that a mean or a deviation may be off: by chance once in 500 million."""
FEW = 30
"""Fewer values than this say little of a distribution: only their size is looked at."""
OTHERS = (1, 2)
"""Draws with other seeds that a tensor is held against, as what is added to its own."""


def drawn_fit(model: nn.Module, target: TargetSpec, keys: Collection[str], seed: int) -> Check:
    """Compare drawn tensors with draws of other seeds: mean, deviation and bounds; constants must be equal.

    What is random must differ between seeds.
    """
    wanted = [key for key in target.tensors if key in keys and target.tensors[key].numel]
    if not wanted:
        return Check(NAME, NOT_RUN, "no tensor is known to be drawn")
    tensors = tensors_of(model)
    others: dict[str, list[Tensor]] = {key: [] for key in wanted}
    for more in OTHERS:
        for key, value in drawn(target, wanted, seed + more):
            others[key].append(value.clone())
    worst, wrong = 0.0, []
    for key in wanted:
        z = _distance(tensors[key].detach().cpu(), others[key])
        worst = max(worst, z if math.isfinite(z) else worst)
        if z > WORST:
            wrong.append(f"{key} ({'another constant' if math.isinf(z) else f'z {z:.0f}'})")
    if wrong:
        return Check(NAME, FAIL, f"{count(len(wrong), 'tensor')} of {len(wanted)} do not: {listing(wrong, where='')}")
    same = [key for key in wanted if _repeats(tensors[key].detach().cpu(), others[key])]
    if same:
        return Check(NAME, FAIL, f"the same values with another seed: {escape(listing(same, where=''))}")
    return Check(NAME, PASS, f"{len(wanted)} of {len(wanted)}, worst z {worst:.1f}")


def _distance(value: Tensor, others: list[Tensor]) -> float:
    """Return how far a tensor is from the others of its make, in standard errors; infinite for another constant."""
    if torch.equal(others[0], others[1]):  # nothing is random about it
        return 0.0 if torch.equal(value, others[0]) else math.inf
    mine, theirs = value.double().flatten(), torch.stack(others).double().flatten()
    centre, spread = theirs.mean(), theirs.std()
    if not torch.isfinite(mine).all():
        return math.inf
    if mine.numel() < FEW:
        furthest = (mine - centre).abs().max() / spread.clamp(min=1e-300)
        return max(0.0, float(furthest) - 4)  # about 4 deviations are the largest of a few dozen
    share = 1 / mine.numel() + 1 / theirs.numel()
    mean_z = (mine.mean() - centre).abs() / (spread * math.sqrt(share))
    fourth = ((theirs - centre) ** 4).mean()
    error = ((fourth - spread**4).clamp(min=1e-3 * spread**4) * share).sqrt()  # of a variance
    spread_z = (mine.var() - spread**2).abs() / error
    width = theirs.max() - theirs.min()
    beyond = torch.maximum(mine.max() - theirs.max(), theirs.min() - mine.min()) / width.clamp(min=1e-300)
    bounds_z = WORST * 2 * float(beyond) if float(beyond) > 0.5 else 0.0  # half as wide again as was ever drawn
    return max(float(mean_z), float(spread_z), bounds_z)


def _repeats(value: Tensor, others: list[Tensor]) -> bool:
    return not torch.equal(others[0], others[1]) and any(torch.equal(value, other) for other in others)
