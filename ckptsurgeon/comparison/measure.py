"""Measures how far the values of two tensors are apart."""

from __future__ import annotations

import math

import numpy as np

from ..checkpoint import Checkpoint
from ..engine import read_part
from ..ops import Array, Box, blocks, cast
from ..tensors import DTYPES, TensorInfo
from .difference import Numbers, Pair, Tolerance

__all__ = ["measure"]

ELEMENTS = 1 << 18
"""Elements held at once of each tensor."""


def measure(pair: Pair, first: Checkpoint, second: Checkpoint, tolerance: Tolerance) -> tuple[Numbers, bool]:
    """Return how far two tensors are apart, and whether that is within the tolerance."""
    differing = nan = 0
    largest = apart = norm_a = norm_b = product = 0.0
    within = bool(tolerance.absolute or tolerance.relative)
    for box in blocks(pair.first.shape, ELEMENTS):
        x, y = _wide(first, pair.first, box), _wide(second, pair.second, box)
        differing += int(np.count_nonzero(~((x == y) | (np.isnan(x) & np.isnan(y)))))
        nan += int(np.count_nonzero(np.isnan(x) != np.isnan(y)))
        within = within and bool(
            np.isclose(x, y, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True).all()
        )
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        gap = np.abs(x - y)
        largest = max(largest, float(gap.max(initial=0.0)))
        apart, product = apart + float(np.vdot(gap, gap).real), product + float(np.vdot(x, y).real)
        norm_a, norm_b = norm_a + float(np.vdot(x, x).real), norm_b + float(np.vdot(y, y).real)
    relative = math.sqrt(apart / norm_a) if norm_a else None
    cosine = product / math.sqrt(norm_a * norm_b) if norm_a and norm_b else None
    return Numbers(differing, largest, relative, cosine, nan), within


def _wide(source: Checkpoint, info: TensorInfo, box: Box) -> Array:
    """Return part of a tensor in the widest type of its kind."""
    kind = "complex128" if DTYPES[info.dtype].kind == "complex" else "float64"
    values, _ = cast(read_part(source, info, box).reshape(-1), info.dtype, kind)
    return values
