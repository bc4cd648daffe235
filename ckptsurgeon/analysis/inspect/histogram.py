"""How often which values stand in a tensor: equal bins between its extremes."""

from __future__ import annotations

import math

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.reading import read_part
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import blocks
from .stats import BLOCK, Stats, as_float64

__all__ = ["BINS", "histogram_of"]

BINS = 32


def histogram_of(checkpoint: Checkpoint, info: TensorInfo, stats: Stats) -> tuple[int, ...]:
    """Read a tensor through and return how many finite elements lie in each of ``BINS`` bins; () where all are equal.

    ``stats`` are those of the tensor. Raises SourceError when the file cannot be read.
    """
    if stats.min is None or stats.max is None or stats.min == stats.max or not math.isfinite(stats.max - stats.min):
        return ()
    counts = np.zeros(BINS, dtype=np.int64)
    for box in blocks(info.shape, BLOCK):
        values = as_float64(read_part(checkpoint, info, box), info.dtype)
        values = values[np.isfinite(values)]
        places = (values - stats.min) / (stats.max - stats.min) * BINS
        counts += np.bincount(np.minimum(places.astype(np.int64), BINS - 1), minlength=BINS)
    return tuple(counts.tolist())
