"""Counts, extremes and moments of the values of one block of a tensor; ``added`` combines those of two blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ....tensors.dtypes import BLOCK_EXPONENTS, DTYPES
from ....tensors.ops.casts import cast
from ....tensors.ops.regions import Array

__all__ = ["BLOCK", "Figures", "Workspace", "added", "figures_of"]

BLOCK = 1 << 20
"""Bytes of a block: small enough for the CPU's caches, large enough that the overhead of numpy calls is negligible."""
ROW = 4096
"""The number of values whose squares are added in single precision; these sums are then added in double precision."""


@dataclass(slots=True)
class Figures:
    """Counts over all values, and extremes and sums over the finite values.

    ``number`` is the number of finite values, ``total`` their sum, ``squares`` the sum of their squares. ``low`` and
    ``high`` are their extremes; if there are no finite values, ``low`` is inf and ``high`` is -inf.
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

    @property
    def std(self) -> float:
        """The population standard deviation of the finite values; 0 if there are none."""
        if not self.number:
            return 0.0
        mean = self.total / self.number
        return math.sqrt(max(0.0, self.squares / self.number - mean * mean))

    @property
    def rms(self) -> float:
        """The root of the mean square of the finite values; 0 if there are none."""
        return math.sqrt(self.squares / self.number) if self.number else 0.0

    @property
    def largest(self) -> float:
        """The largest magnitude of a finite value; 0 if there are none."""
        return max(abs(self.low), abs(self.high)) if self.number else 0.0


def added(one: Figures, other: Figures) -> Figures:
    """Return the figures of the union of two blocks."""
    return Figures(
        one.number + other.number, min(one.low, other.low), max(one.high, other.high), one.total + other.total,
        one.squares + other.squares, one.zeros + other.zeros, one.denormals + other.denormals, one.nan + other.nan,
        one.inf + other.inf,
    )  # fmt: skip


class Workspace:
    """Arrays that a thread reuses for each block, to avoid allocations. ``floats`` are the values of the last block."""

    def __init__(self) -> None:
        self.bytes = np.empty(BLOCK, np.uint8)
        self.codes = np.empty(BLOCK, np.uint8)
        self.truths = np.empty(BLOCK, np.bool_)
        self.wide = np.empty(BLOCK, np.uint32)
        self.ones = np.ones(ROW, np.float32)
        self.floats: Array = self.wide.view(np.float32)[:0]


def figures_of(raw: Array, dtype: str, work: Workspace) -> Figures | None:
    """Return the figures of values that are given as raw bytes of ``dtype``; None if ``dtype`` is not numeric.

    If ``dtype`` is in ``LAYOUTS``, ``work.floats`` has the values afterwards.
    """
    if not raw.size:
        return Figures()
    if dtype in LAYOUTS:
        return _floats(raw, work, LAYOUTS[dtype])
    if dtype.startswith("float8_") or dtype in BLOCK_EXPONENTS:
        return _rare(raw, dtype)
    return _integers(raw.view(np.dtype(dtype))) if DTYPES[dtype].kind in ("int", "uint", "bool") else None


@dataclass(frozen=True)
class _Layout:
    """The layout of a float type. ``codes`` is the unsigned integer type of the same size.

    ``infinity`` and ``normal`` are the codes of infinity and of the smallest number that is not denormal. For a type
    with fewer bits than float32, shifting the code to the left by ``shift`` gives the code of a float32 that is too
    small by ``factor``. If ``is_infinite`` is false, the type has no infinity, and ``infinity`` is the code of its NaN.
    """

    codes: np.dtype[Any]
    infinity: int
    normal: int
    shift: int = 0
    factor: float = 1.0
    is_infinite: bool = True

    @property
    def sign(self) -> int:
        """The code with only the sign bit set."""
        return 1 << (8 * self.codes.itemsize - 1)

    @property
    def signed(self) -> np.dtype[Any]:
        """The signed integer dtype of the same size as the codes."""
        return np.dtype(f"i{self.codes.itemsize}")


LAYOUTS: Mapping[str, _Layout] = {
    "bfloat16": _Layout(np.dtype("u2"), 0x7F80, 0x0080, 16),
    "float16": _Layout(np.dtype("u2"), 0x7C00, 0x0400, 13, 2.0**112),
    "float8_e4m3fn": _Layout(np.dtype("u1"), 0x7F, 0x08, 20, 2.0**120, is_infinite=False),
    "float8_e5m2": _Layout(np.dtype("u1"), 0x7C, 0x04, 21, 2.0**112),
    "float32": _Layout(np.dtype("u4"), 0x7F800000, 0x00800000),
    "float64": _Layout(np.dtype("u8"), 0x7FF << 52, 1 << 52),
}


def _floats(raw: Array, work: Workspace, layout: _Layout) -> Figures:
    """Return the figures of floats. Zeros, denormals, infinities and NaN are counted only if a block has any."""
    codes = raw.view(layout.codes)
    values = work.floats = _as_floats(codes, work.wide[: codes.size], layout)
    least, most, ends = _extremes(codes, layout)
    if layout.normal <= least and most < layout.infinity:
        total, squares = _sums(values, work)
        low, high = _as_floats(np.array(ends, layout.codes), np.empty(2, np.uint32), layout).tolist()
        return Figures(values.size, low, high, total, squares)
    return _counted(codes, values, work, layout)


def _as_floats(codes: Array, out: Array, layout: _Layout) -> Array:
    """Return the values of codes. Codes of 8 and 16 bits are converted to float32 in ``out``, by shifting their bits.

    The exponent bias of float16 is smaller by 112 than that of float32, hence the factor. numpy's own conversion takes
    six times as long. Infinities and NaN may become finite, but ``_counted`` excludes them by their codes.
    """
    if not layout.shift:
        return codes.view(np.dtype(f"f{layout.codes.itemsize}"))
    bits = out.view(np.int32)
    np.copyto(bits, codes.view(layout.signed))
    np.left_shift(bits, layout.shift, out=bits)
    values = bits.view(np.float32)
    if layout.factor != 1:
        np.bitwise_and(bits, np.int32(((layout.sign - 1) << layout.shift) - (1 << 31)), out=bits)
        np.multiply(values, np.float32(layout.factor), out=values)
    return values


def _extremes(codes: Array, layout: _Layout) -> tuple[int, int, tuple[int, int]]:
    """Return (smallest magnitude, largest magnitude, (code of the lowest value, code of the highest value)).

    Magnitudes are codes without the sign bit.

    Floats have the same order as their codes as integers; negative floats have the reverse order. So the extremes of
    the codes as signed and as unsigned integers are sufficient, and integers are compared twice as fast.
    """
    signed, sign = codes.view(layout.signed), layout.sign
    last, first = int(codes.max()), int(codes.min())
    top, bottom = int(signed.max()), int(signed.min())
    if bottom >= 0:
        return first, last, (first, last)
    if top < 0:
        return first - sign, last - sign, (last, first)
    return min(first, bottom + sign), max(top, last - sign), (last, top)


def _counted(codes: Array, values: Array, work: Workspace, layout: _Layout) -> Figures:
    """Return the figures of a block in which some values are zero, denormal, infinite or NaN."""
    absolute = np.bitwise_and(codes, codes.dtype.type(layout.sign - 1), out=work.codes.view(codes.dtype)[: codes.size])
    zeros = absolute.size - int(np.count_nonzero(absolute))
    small = int(np.count_nonzero(np.less(absolute, layout.normal, out=work.truths[: absolute.size])))
    inf = nan = 0
    if int(absolute.max()) >= layout.infinity:
        inf = int(np.count_nonzero(absolute == layout.infinity))
        nan = int(np.count_nonzero(absolute > layout.infinity))
        values = values[absolute < layout.infinity]
    found = _moments(values, work)
    found.zeros, found.denormals = zeros, small - zeros
    found.nan, found.inf = (nan, inf) if layout.is_infinite else (inf, 0)
    return found


def _moments(values: Array, work: Workspace) -> Figures:
    if not values.size:
        return Figures()
    total, squares = _sums(values, work)
    return Figures(values.size, float(values.min()), float(values.max()), total, squares)


def _sums(values: Array, work: Workspace) -> tuple[float, float]:
    """Return the sum of the values and the sum of their squares; in double precision if single precision overflows."""
    if values.dtype == np.float32:
        whole = values.size // ROW * ROW
        total, squares = _of_rows(values[:whole].reshape(-1, ROW), work.ones)
        if whole < values.size:
            more, rest = _of_rows(values[whole:].reshape(1, -1), work.ones[: values.size - whole])
            total, squares = total + more, squares + rest
        if math.isfinite(squares):
            return total, squares
    wide = values.astype(np.float64)
    return float(wide.sum()), float(np.square(wide).sum())


def _of_rows(rows: Array, ones: Array) -> tuple[float, float]:
    """Return the sum of all values and the sum of their squares; ``ones`` is a row of ones.

    The sums are computed as products of single rows, because BLAS starts threads for larger matrices.
    """
    squares = np.matmul(rows[:, None, :], rows[:, :, None])
    totals = np.matmul(rows[:, None, :], ones[:, None])
    return float(totals.sum(dtype=np.float64)), float(squares.sum(dtype=np.float64))


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
    """Return the values of the 256 codes of an 8-bit dtype, or of the exponents of a type of GGUF, which has no NaN."""
    if dtype in BLOCK_EXPONENTS:
        return np.exp2(np.arange(256, dtype=np.float64) - ONE_E8M0)
    values, _ = cast(np.arange(256, dtype=np.uint8), dtype, "float64")
    return values
