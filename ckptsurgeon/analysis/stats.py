"""Statistics of tensors' values, read in blocks: mean, standard deviation, extremes, zeros, NaN, Inf, a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..checkpoint.checkpoint import Checkpoint
from ..engine.checksums import check_values
from ..engine.compute.column_bands import banded
from ..engine.compute.reading import read_part
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..tensors.ops.casts import cast
from ..tensors.ops.regions import Array, blocks

__all__ = ["BINS", "BLOCK", "Stats", "as_float64", "histogram_of", "stats_of"]

REAL = ("float", "int", "uint", "bool")
"""The kinds of dtypes whose values are real numbers."""
BLOCK = 1 << 18
"""The number of elements that are read at once."""


@dataclass(frozen=True)
class Stats:
    """Statistics of a tensor. ``mean``, ``std``, ``min`` and ``max`` are over its finite values.

    They are None if there are no finite values, if the result exceeds float64, or if the tensor is complex. A complex
    number counts as NaN or infinite if its real or imaginary part is. ``std`` is the population standard deviation.
    ``zeros``, ``nan`` and ``inf`` are numbers of elements.
    """

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    zeros: int
    nan: int
    inf: int


def stats_of(checkpoint: Checkpoint, info: TensorInfo) -> Stats | None:
    """Read a tensor and return its statistics.

    Returns None for packed dtypes, and for tensors that are not plain bytes (sparse, quantised, meta).
    Raises SourceError if the file cannot be read, FormatError if the stored checksum is wrong.
    """
    dtype = DTYPES[info.dtype]
    is_complex = dtype.kind == "complex"
    if info.opaque or not (is_complex or dtype.kind in REAL) or dtype.bits % 8 or dtype.values > 1:
        return None
    check_values(checkpoint, info)
    if is_complex:
        return _counts_of(checkpoint, info)
    files = banded(info, checkpoint)
    number, mean, squares = 0, 0.0, 0.0
    low, high, zeros, nan, inf = math.inf, -math.inf, 0, 0, 0
    for box in blocks(info.shape, BLOCK):
        values = as_float64(read_part(files, info, box), info.dtype)
        finite = values[np.isfinite(values)]
        missing = int(np.count_nonzero(np.isnan(values)))
        nan, inf = nan + missing, inf + values.size - finite.size - missing
        if not finite.size:
            continue
        zeros += int(np.count_nonzero(finite == 0))
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        # Chan, Golub and LeVeque (1983): combine the means and the squared deviations of two groups
        with np.errstate(over="ignore", invalid="ignore"):
            size, group = finite.size, float(finite.mean())
            delta, total = group - mean, number + finite.size
            squares += float(((finite - group) ** 2).sum()) + float(np.float64(delta) ** 2 * number * size / total)
            mean, number = mean + delta * size / total, total
    if not number:
        return Stats(None, None, None, None, zeros, nan, inf)
    return Stats(_known(mean), _known(math.sqrt(squares / number)), low, high, zeros, nan, inf)


def _counts_of(checkpoint: Checkpoint, info: TensorInfo) -> Stats:
    """Return the statistics of a tensor of complex numbers: only the counts are set."""
    files = banded(info, checkpoint)
    zeros, nan, inf = 0, 0, 0
    for box in blocks(info.shape, BLOCK):
        values, _ = cast(read_part(files, info, box).reshape(-1), info.dtype, "complex128")
        missing = np.isnan(values)
        zeros += int(np.count_nonzero(values == 0))
        nan, inf = nan + int(missing.sum()), inf + int((np.isinf(values) & ~missing).sum())
    return Stats(None, None, None, None, zeros, nan, inf)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_float64(values: Array, dtype: str) -> Array:
    """Return ``values``, which are of the given dtype, as a flat float64 array."""
    wide, _ = cast(values.reshape(-1), dtype, "float64")
    return wide


# Histograms: bins of equal width between the extremes.

BINS = 32


def histogram_of(checkpoint: Checkpoint, info: TensorInfo, stats: Stats) -> tuple[int, ...]:
    """Read a tensor and return the number of finite elements in each of ``BINS`` bins of equal width.

    ``stats`` are the statistics of the tensor. Returns () if all finite elements are equal, if there are none, or if
    their range exceeds float64. Raises SourceError if the file cannot be read.
    """
    if stats.min is None or stats.max is None or stats.min == stats.max or not math.isfinite(stats.max - stats.min):
        return ()
    counts = np.zeros(BINS, dtype=np.int64)
    files = banded(info, checkpoint)
    for box in blocks(info.shape, BLOCK):
        values = as_float64(read_part(files, info, box), info.dtype)
        values = values[np.isfinite(values)]
        places = (values - stats.min) / (stats.max - stats.min) * BINS
        counts += np.bincount(np.minimum(places.astype(np.int64), BINS - 1), minlength=BINS)
    return tuple(counts.tolist())
