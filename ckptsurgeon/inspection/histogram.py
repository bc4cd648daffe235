"""How often which values stand in a tensor: equal bins between its extremes."""

from __future__ import annotations

import numpy as np

from ..checkpoint import Checkpoint
from ..engine import read_part
from ..ops import blocks
from ..tensors import TensorInfo
from .stats import BLOCK, Stats, as_float64

__all__ = ["BINS", "histogram_of"]

BINS = 32


def histogram_of(checkpoint: Checkpoint, info: TensorInfo, stats: Stats) -> tuple[int, ...]:
    """Read a tensor through and return how many finite elements lie in each of ``BINS`` bins; () where all are equal.

    ``stats`` are those of the tensor. Raises SourceError when the file cannot be read.
    """
    if stats.min is None or stats.max is None or not np.isfinite(stats.max - stats.min) or stats.min == stats.max:
        return ()
    counts = np.zeros(BINS, dtype=np.int64)
    for box in blocks(info.shape, BLOCK):
        values = as_float64(read_part(checkpoint, info, box), info.dtype)
        counts += np.histogram(values[np.isfinite(values)], BINS, (stats.min, stats.max))[0]
    return tuple(counts.tolist())
