"""Counts, extremes and moments of the values of a block of a tensor; ``added`` combines the figures of two blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ....tensors.dtypes import BLOCK_EXPONENTS, DTYPES
from ....tensors.ops.casts import cast
from ....tensors.ops.regions import Array
from .float_values import LAYOUTS, FloatLayout, as_floats, as_floats_in_any_order, extremes
from .sums import ROW, SHARE, runs_of, scaled_up, whole_sums

__all__ = ["BLOCK", "Figures", "Workspace", "added", "figures_of"]

BLOCK = 1 << 19
"""The size of a block in bytes: as float32, it fits into a core's cache; and it needs few numpy calls."""


@dataclass(slots=True)
class Figures:
    """Counts over all values, and extremes and sums over the finite values.

    ``number`` is the number of finite values, ``total`` their sum, ``squares`` the sum of their squares. ``low`` and
    ``high`` are their extremes; if there are no finite values, ``low`` is inf and ``high`` is -inf. ``negative_zeros``
    are counted only for the usual 8-bit floats (e4m3fn, e5m2). The sums of a large tensor are estimates (see ``sums``).
    For 8-bit floats and float16, the numbers of denormals and of negative zeros are estimates, too; but
    ``negative_zeros`` is 0 only if there are none.
    """

    number: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    denormals: int = 0
    nan: int = 0
    inf: int = 0
    negative_zeros: int = 0

    @property
    def std(self) -> float:
        """The population standard deviation of the finite values; 0 if no value is finite."""
        if not self.number:
            return 0.0
        mean = self.total / self.number
        return math.sqrt(max(0.0, self.squares / self.number - mean * mean))

    @property
    def rms(self) -> float:
        """The root mean square of the finite values; 0 if no value is finite."""
        return math.sqrt(self.squares / self.number) if self.number else 0.0

    @property
    def largest(self) -> float:
        """The largest magnitude of a finite value; 0 if no value is finite."""
        return max(abs(self.low), abs(self.high)) if self.number else 0.0


def added(one: Figures, other: Figures) -> Figures:
    """Return the figures of the union of two blocks."""
    return Figures(
        one.number + other.number, min(one.low, other.low), max(one.high, other.high), one.total + other.total,
        one.squares + other.squares, one.zeros + other.zeros, one.denormals + other.denormals, one.nan + other.nan,
        one.inf + other.inf, one.negative_zeros + other.negative_zeros,
    )  # fmt: skip


class Workspace:
    """Arrays that a thread reuses for each block, to avoid allocations. ``floats`` are the values of the last block."""

    def __init__(self) -> None:
        self.bytes = np.empty(BLOCK, np.uint8)
        self.codes = np.empty(BLOCK, np.uint8)
        self.sample = np.empty(BLOCK // SHARE, np.uint8)
        self.truths = np.empty(BLOCK, np.bool_)
        self.wide = np.empty(BLOCK, np.uint32)
        self.ones = np.ones(ROW, np.float32)
        self.floats: Array = self.wide.view(np.float32)[:0]


def figures_of(
    raw: Array, dtype: str, work: Workspace, *, in_order: bool = True, sample: int | None = None
) -> Figures | None:
    """Return the figures of values that are given as raw bytes of ``dtype``; None if ``dtype`` is not numeric.

    If ``dtype`` is in ``LAYOUTS``, ``work.floats`` has the values afterwards, in any order unless ``in_order`` is set.
    If the number ``sample`` is set, the two sums and some counts may be estimated from a part of the values, and
    ``sample`` selects the part (see ``Figures``). Then ``work.floats`` has only the values of this part.
    """
    if not raw.size:
        return Figures()
    if dtype in LAYOUTS:
        return _floats(raw, work, LAYOUTS[dtype], in_order, sample)
    if dtype.startswith("float8_") or dtype in BLOCK_EXPONENTS:
        return _rare(raw, dtype)
    return _integers(raw.view(np.dtype(dtype))) if DTYPES[dtype].kind in ("int", "uint", "bool") else None


def _floats(raw: Array, work: Workspace, layout: FloatLayout, in_order: bool, sample: int | None) -> Figures:
    """Return the figures (counts, extremes, sums) of values of a float type, which ``raw`` has as bytes.

    The smallest and the largest magnitude show whether there are any zeros, denormals, infinities or NaN. If there are
    any, they are counted in a second step.
    """
    codes = raw.view(layout.codes)
    least, most, ends, has_negative = extremes(codes, layout)
    if most >= layout.infinity:
        found = _finite(codes, work, layout)
    else:
        found = Figures(codes.size, *ends)
        if most and sample is not None and raw.size == BLOCK:
            found.negative_zeros = int(has_negative and bool(layout.small))
            if _is_estimated(found, codes, work, layout, sample, least):
                return found
        found.total, found.squares = _exact(codes, work, layout, in_order)
        if least < layout.normal:
            _count_small(found, _magnitudes(codes, work, layout), work, layout, has_zeros=least == 0)
    if layout.small and found.zeros:
        found.negative_zeros = found.zeros - (codes.size - int(np.count_nonzero(codes)))
    return found


def _exact(codes: Array, work: Workspace, layout: FloatLayout, in_order: bool) -> tuple[float, float]:
    """Return the sum of all values and the sum of their squares; ``work.floats`` has the values afterwards."""
    convert = as_floats if in_order else as_floats_in_any_order
    work.floats = convert(codes, work.wide[: codes.size], layout)
    return whole_sums(work.floats, work.ones)


def _is_estimated(found: Figures, every: Array, work: Workspace, layout: FloatLayout, sample: int, least: int) -> bool:
    """Set the sums and the numbers of small values in ``found``, estimated from a part of a block's codes.

    Returns False if the estimates may be far off. ``every`` are all codes of the block; ``least`` is the smallest
    magnitude among them, as a code. If an 8-bit block has a negative zero, the caller has set ``found.negative_zeros``
    to 1.
    """
    codes = runs_of(every.view(np.uint8), sample, work.sample).view(layout.codes)
    sums = scaled_up(_exact(codes, work, layout, in_order=False), codes.size, found.number, found.largest)
    if sums is None:
        return False
    found.total, found.squares = sums
    if least >= layout.normal:
        return True
    if layout.has_narrow_exponent:
        _estimate_small(found, every, codes, work, layout, has_zeros=least == 0)
    else:
        _count_small(found, _magnitudes(every, work, layout), work, layout, has_zeros=least == 0)
    return True


def _estimate_small(
    found: Figures, every: Array, codes: Array, work: Workspace, layout: FloatLayout, *, has_zeros: bool
) -> None:
    """Set the numbers of zeros and denormals in ``found``.

    Positive zeros are counted in ``every``, all codes of a block. The numbers of the other small values are estimated
    from ``codes``, a sample. This saves three of four passes over all codes.
    """
    share, positive = every.size // codes.size, codes.size - int(np.count_nonzero(codes))
    _count_small(found, _magnitudes(codes, work, layout), work, layout, has_zeros=has_zeros)
    found.denormals *= share
    if has_zeros:
        negative = max((found.zeros - positive) * share, found.negative_zeros)
        if layout.small:
            found.negative_zeros = negative
        found.zeros = min(every.size - int(np.count_nonzero(every)) + negative, every.size - 1)  # not all are zeros


def _magnitudes(codes: Array, work: Workspace, layout: FloatLayout) -> Array:
    """Return the codes (floats as unsigned integers of the same bits) without their sign bits."""
    mask = codes.dtype.type(layout.sign - 1)
    magnitudes: Array = np.bitwise_and(codes, mask, out=work.codes.view(codes.dtype)[: codes.size])
    return magnitudes


def _count_small(
    found: Figures, magnitudes: Array, work: Workspace, layout: FloatLayout, *, has_zeros: bool = True
) -> None:
    """Set the numbers of zeros and denormals in ``found``; ``magnitudes`` are the codes without their sign bits.

    ``has_zeros`` is false if it is known that there are no zeros; then they are not counted.
    """
    found.zeros = magnitudes.size - int(np.count_nonzero(magnitudes)) if has_zeros else 0
    small = np.less(magnitudes, layout.normal, out=work.truths[: magnitudes.size])
    found.denormals = int(np.count_nonzero(small)) - found.zeros


def _finite(codes: Array, work: Workspace, layout: FloatLayout) -> Figures:
    """Return the figures of a block in which some values are infinite or NaN."""
    magnitudes = _magnitudes(codes, work, layout)
    values = work.floats = as_floats(codes, work.wide[: codes.size], layout)
    found = _moments(values[magnitudes < layout.infinity], work)
    _count_small(found, magnitudes, work, layout)
    inf, nan = np.count_nonzero(magnitudes == layout.infinity), np.count_nonzero(magnitudes > layout.infinity)
    found.nan, found.inf = (int(nan), int(inf)) if layout.is_infinite else (int(inf), 0)
    return found


def _moments(values: Array, work: Workspace) -> Figures:
    if not values.size:
        return Figures()
    total, squares = whole_sums(values, work.ones)
    return Figures(values.size, float(values.min()), float(values.max()), total, squares)


def _integers(values: Array) -> Figures:
    zeros = values.size - int(np.count_nonzero(values))
    return Figures(values.size, float(values.min()), float(values.max()), zeros=zeros)


ONE_E8M0 = 127
"""The code of the scale 1 in E8M0 (scales that are stored as exponents)."""
# Rare 8-bit floats: the figures are computed from the number of times that each of the 256 codes occurs.


def _rare(raw: Array, dtype: str) -> Figures:
    counts = np.bincount(raw, minlength=256)
    values = _values_of_codes(dtype)
    is_finite, codes = np.isfinite(values), np.arange(256) & 0x7F
    there, held, times = values[is_finite & (counts > 0)], values[is_finite], counts[is_finite]
    smallest = 1 << {"float8_e5m2fnuz": 2, "float8_e4m3fnuz": 3}.get(dtype, 0)
    return Figures(
        int(times.sum()), float(there.min(initial=math.inf)), float(there.max(initial=-math.inf)),
        float(held @ times), float((held * held) @ times), int(counts[values == 0].sum()),
        int(counts[(codes > 0) & (codes < smallest)].sum()), int(counts[np.isnan(values)].sum()),
        int(counts[np.isinf(values)].sum()),
    )  # fmt: skip


@cache
def _values_of_codes(dtype: str) -> Array:
    """Return the values of the 256 codes of an 8-bit dtype.

    If ``dtype`` is a GGUF type with exponents as scales, the values are powers of two, without NaN.
    """
    if dtype in BLOCK_EXPONENTS:
        return np.exp2(np.arange(256, dtype=np.float64) - ONE_E8M0)
    values, _ = cast(np.arange(256, dtype=np.uint8), dtype, "float64")
    return values
