"""Tensors of which only a part came from a source: laid over what their initialiser draws, or mapped to new tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...checkpoint.opening import open_checkpoint
from .init import InitCheckpoint
from .job import Job, initial_values

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = ["new_part_mask", "new_part_masks"]

SAVED_AS = (torch.float32, torch.bfloat16, torch.float16)
"""How an init may have been saved: what was drawn is rounded so."""


def new_part_masks(job: Job, plan: Plan | None) -> dict[str, Tensor]:
    """Return where the tensors are drawn that the init, loaded by ``plan``, has in part from a source."""
    if job.init is None or plan is None:
        return {}
    keys = [key for key in job.target.tensors if key in job.init.partly]
    source_keys = {step.key: step.source_key for step in plan.steps}
    parts = {}
    with open_checkpoint(job.init.path) as opened:
        checkpoint = opened.unwrapped(destination=list(job.target.tensors))
        for key, own in initial_values(job.target, keys, job.init.seed or 0):
            value = checkpoint.tensor(source_keys[key]).to(own.dtype).reshape(own.shape)
            parts[key] = new_part_mask(job.init, key, value, own)
    return parts


def new_part_mask(init: InitCheckpoint, key: str, value: Tensor, own: Tensor) -> Tensor:
    """Return where a tensor is drawn, as booleans of its shape.

    ``value`` is what the init brought, ``own`` what its seed draws for the whole tensor. Of a vocabulary the rows say
    it; a source that was laid over begins at the origin and is a box, beside which everything is as it was drawn.
    """
    assert init.recipe is not None
    made, rows = init.recipe.tensors[key], init.recipe.rows
    if made.op == "map":
        fresh = [place for place, row in enumerate(rows.rows) if row is None] if rows is not None and rows.draws else []
        drawn = torch.zeros(value.shape, dtype=torch.bool)
        return drawn.index_fill_(made.axis, torch.tensor(fresh, dtype=torch.int64), True)
    foreign = torch.ones(value.shape, dtype=torch.bool)
    for dtype in SAVED_AS if value.is_floating_point() else ():
        foreign &= value != own.to(dtype).to(value.dtype)
    foreign &= value != own
    drawn = torch.ones(value.shape, dtype=torch.bool)
    if foreign.any():
        drawn[tuple(slice(0, int(along.max()) + 1) for along in foreign.nonzero(as_tuple=True))] = False
    return drawn
