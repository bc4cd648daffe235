"""Measures the distance of the values of two tensors, block by block, with sums that do not overflow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.column_bands import OpenFiles, banded
from ...engine.compute.reading import read_part
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import cast
from ...tensors.ops.regions import Array, Box, blocks
from .results import Numbers, Pair, Tolerance
from .sums import ZERO, Sum, dot, finite, norm, quotient, scaled

__all__ = ["ELEMENTS", "has_figures", "measure", "values_of"]

ELEMENTS = 1 << 16
"""At most this many elements of each tensor are in memory at once, so that the CPU caches hold all arrays."""


@dataclass(frozen=True)
class _Figures:
    """Sums over the elements of two tensors, from which their distance is computed.

    ``gap``, ``first`` and ``second`` are the sums of the squares of the difference and of each tensor; ``product`` is
    the sum of the products of the two tensors' elements. ``within`` is true if all differences are within the
    tolerance. ``opposite`` is the number of elements that are a different infinity in each tensor; see Numbers for the
    other counts.
    """

    differing: int = 0
    nan_in: tuple[int, int] = (0, 0)
    inf_in: tuple[int, int] = (0, 0)
    opposite: int = 0
    largest: float = 0.0
    gap: Sum = ZERO
    first: Sum = ZERO
    second: Sum = ZERO
    product: Sum = ZERO
    within: bool = True

    def __add__(self, other: _Figures) -> _Figures:
        return _Figures(
            self.differing + other.differing,
            _added(self.nan_in, other.nan_in),
            _added(self.inf_in, other.inf_in),
            self.opposite + other.opposite,
            max(self.largest, other.largest),
            self.gap + other.gap,
            self.first + other.first,
            self.second + other.second,
            self.product + other.product,
            self.within and other.within,
        )


def measure(pair: Pair, first: Checkpoint, second: Checkpoint, tolerance: Tolerance) -> tuple[Numbers | None, bool]:
    """Return the distance of a tensor's values in two checkpoints, and whether it is within the tolerance.

    The distance is None for dtypes whose elements are not plain numbers. Two integers are compared exactly, all other
    numbers in double precision.
    """
    if not (has_figures(pair.first) and has_figures(pair.second)):
        return None, False
    total = _Figures()
    here, there = banded(pair.first, first), banded(pair.second, second)
    for box in blocks(pair.first.shape, ELEMENTS):
        total += _figures(values_of(here, pair.first, box), values_of(there, pair.second, box), tolerance)
    numbers = Numbers(
        total.differing,
        finite(total.largest),
        quotient(norm(total.gap), norm(total.first)),
        quotient(total.product, norm(total.first), norm(total.second)),
        sum(total.nan_in),
        sum(total.inf_in) + total.opposite,
        total.nan_in,
        total.inf_in,
    )
    return numbers, total.within


def has_figures(info: TensorInfo) -> bool:
    """Return whether the elements of a tensor are plain numbers; elements of quantised and packed dtypes are not."""
    dtype = DTYPES[info.dtype]
    return dtype.kind not in ("quantized", "bits") and dtype.bits % 8 == 0 and dtype.values == 1


def values_of(source: OpenFiles, info: TensorInfo, box: Box) -> Array:
    """Return the part ``box`` of a tensor as a flat array.

    Integers stay as they are, booleans become 0 or 1, and other numbers become float64 or complex128.
    """
    values, kind = read_part(source, info, box).reshape(-1), DTYPES[info.dtype].kind
    if kind in ("int", "uint"):
        return values
    if kind == "bool":
        truth: Array = (values != 0).astype("u1")
        return truth
    return cast(values, info.dtype, "complex128" if kind == "complex" else "float64")[0]


def _figures(x: Array, y: Array, tolerance: Tolerance) -> _Figures:
    """Return the sums over one block of two tensors, from which the distance of the tensors is computed."""
    x, y, nan_in, inf_in, opposite = _finite_in_both(x, y)
    special = sum(nan_in) + sum(inf_in) + opposite
    with np.errstate(over="ignore", invalid="ignore"):  # a figure that float64 cannot hold becomes None
        gap = _gap(x, y)
        a, b, c = scaled(x), scaled(y), scaled(gap)
        return _Figures(
            int(np.count_nonzero(gap)) + special,
            nan_in,
            inf_in,
            opposite,
            float(gap.max(initial=0)),
            dot(c, c),
            dot(a, a),
            dot(b, b),
            dot(a, b),
            not special and _within(gap, b.values if not b.exponent else y, tolerance),
        )


def _within(gap: Array, second: Array, tolerance: Tolerance) -> bool:
    if not (tolerance.absolute or tolerance.relative):
        return False
    return bool((gap <= tolerance.absolute + tolerance.relative * np.abs(second)).all())


def _finite_in_both(x: Array, y: Array) -> tuple[Array, Array, tuple[int, int], tuple[int, int], int]:
    """Return the elements that are finite in both arrays, and counts of the other elements that differ.

    The counts are of the elements that are NaN in the first array only and in the second only, of those that are
    infinite in the first only and in the second only, and of those that are a different infinity in each.
    """
    both = np.isfinite(x) & np.isfinite(y)
    if both.all():
        return x, y, (0, 0), (0, 0), 0
    a, b = x[~both], y[~both]
    nan = np.isnan(a) | np.isnan(b)
    here, there = np.isinf(a) & ~nan, np.isinf(b) & ~nan
    opposite = int(np.count_nonzero(here & there & (a != b)))
    return x[both], y[both], _in_one(np.isnan(a), np.isnan(b)), _in_one(here, there), opposite


def _in_one(first: Array, second: Array) -> tuple[int, int]:
    """Return how many elements are true in the first array only, and how many in the second only."""
    return int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))


def _added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _gap(x: Array, y: Array) -> Array:
    """Return the absolute differences of two arrays, element by element.

    The differences of integers are exact and have an unsigned dtype. But if one array is uint64 and the other is
    signed, the differences are float64.
    """
    if x.dtype.kind not in "iu" or y.dtype.kind not in "iu":
        gap: Array = np.subtract(x, y)
        return np.abs(gap) if gap.dtype.kind == "c" else np.abs(gap, out=gap)
    wide = np.result_type(x, y)
    if wide.kind == "f":
        return _gap_of_signed_and_unsigned(x, y)
    unsigned = f"<u{wide.itemsize}"
    low, high = np.minimum(x, y).astype(wide), np.maximum(x, y).astype(wide)
    exact: Array = high.view(unsigned) - low.view(
        unsigned
    )  # modular arithmetic: right even if the signed difference overflows
    return exact


def _gap_of_signed_and_unsigned(x: Array, y: Array) -> Array:
    """Return the absolute differences of signed and unsigned 64-bit integers as float64.

    numpy has no integer dtype that holds both.
    """
    a, b = x.astype("<u8"), y.astype("<u8")
    exact = np.where(x > y, a - b, b - a)
    rough = np.abs(x.astype("<f8") - y.astype("<f8"))
    gap: Array = np.where(rough < 2.0**63, exact.astype("<f8"), rough)
    return gap
