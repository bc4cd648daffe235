"""Measures the scales that a pickle stores inside quantised tensors of torch and torchao, without separate keys."""

from __future__ import annotations

import math

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.info import TensorInfo
from ....tensors.torch_quantisers import pickled_scale
from .figures import Figures
from .one_pass import measure

__all__ = ["pickled_scales"]


def pickled_scales(checkpoint: Checkpoint) -> dict[str, Figures]:
    """Return {key of a pickled quantised tensor: figures (counts, extremes, sums) of the scales inside it}."""
    found: dict[str, Figures] = {}
    tensors: dict[str, TensorInfo] = {}
    for key, info in checkpoint.items():
        scale = pickled_scale(info) if info.opaque else None
        if isinstance(scale, TensorInfo):
            tensors[key] = scale
        elif scale is not None:
            found[key] = _of_one(scale)
    measured = measure(checkpoint, tensors, ()) if tensors else {}
    return found | {key: one.figures for key, one in measured.items() if one.figures is not None}


def _of_one(scale: float) -> Figures:
    if not math.isfinite(scale):
        return Figures(nan=int(math.isnan(scale)), inf=int(math.isinf(scale)))
    return Figures(1, scale, scale, scale, scale * scale, zeros=int(scale == 0))
