"""Tensors that no source gave look like what their declared initialiser draws."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ...planning.target import TargetSpec
from ...util.text import count, escape, listing
from ..job.job import initial_values, state_tensors
from ._check import FAIL, NOT_RUN, PASS, Check
from ._distance import FEW_VALUES, MAX_Z, z_score

__all__ = ["initialised_tensors"]

INITIALISED = "initialised tensors fit"
OTHERS = 2
"""Draws with the next seeds that a tensor is held against."""
OTHERS_OF_FEW = 32
"""As many of a tensor with few values, if they are drawn in a few seconds."""
DRAW_LIMIT_S = 3.0


def initialised_tensors(
    model: nn.Module, target: TargetSpec, keys: Collection[str], seed: int, *, parts: Mapping[str, Tensor] | None = None
) -> Check:
    """Compare drawn tensors with draws of other seeds: mean, deviation and bounds; constants must be equal.

    What is random must differ between seeds. Of ``parts`` only what is true is drawn, and compared.
    """
    parts = {key: part for key, part in (parts or {}).items() if part.any()}
    wanted = [key for key in target.tensors if (key in keys or key in parts) and target.tensors[key].numel]
    if not wanted:
        return Check(INITIALISED, NOT_RUN, "no tensor is known to be drawn")
    tensors = state_tensors(model)
    values = {key: _of(tensors[key].detach().cpu(), parts.get(key)) for key in wanted}
    others = _others(target, wanted, seed, parts)
    found = {key: z_score(values[key], others[key]) for key in wanted}
    wrong = [
        f"{key} ({'another constant' if math.isinf(z) else f'z {z:.0f}'})" for key, z in found.items() if z > MAX_Z
    ]
    if wrong:
        return Check(
            INITIALISED, FAIL, f"{count(len(wrong), 'tensor')} of {len(wanted)} do not: {listing(wrong, where='')}"
        )
    same = [key for key in wanted if _repeats(values[key], others[key])]
    if same:
        return Check(INITIALISED, FAIL, f"the same values with another seed: {escape(listing(same, where=''))}")
    rest = f", {len(parts)} in part" if parts else ""
    return Check(INITIALISED, PASS, f"{len(wanted)} of {len(wanted)}{rest}, worst z {max(found.values()):.1f}")


def _of(value: Tensor, part: Tensor | None) -> Tensor:
    return value if part is None else value[part]


def _others(target: TargetSpec, keys: list[str], seed: int, parts: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return what other seeds draw; of few values often, so that their deviation is known too."""
    others: dict[str, list[Tensor]] = {key: [] for key in keys}
    until, more = time.monotonic() + DRAW_LIMIT_S, 0
    while keys and (more < OTHERS or time.monotonic() < until):
        more += 1
        for key, value in initial_values(target, keys, seed + more):
            others[key].append(_of(value, parts.get(key)).clone())
        if more == OTHERS:  # constants are no other the next time
            keys = [key for key in keys if others[key][0].numel() < FEW_VALUES and not torch.equal(*others[key])]
        if more == OTHERS_OF_FEW:
            break
    return others


def _repeats(value: Tensor, others: list[Tensor]) -> bool:
    return not torch.equal(others[0], others[1]) and any(torch.equal(value, other) for other in others)
