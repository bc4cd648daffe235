"""The bit layouts of float types, and their values as float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from struct import pack, unpack
from typing import Any

import numpy as np

from ....tensors.ops.regions import Array
from ....tensors.ops.small_floats import from_small

__all__ = ["LAYOUTS", "FloatLayout", "as_floats", "as_floats_in_any_order", "extremes"]


@dataclass(frozen=True, eq=False)  # found by identity in a cache
class FloatLayout:
    """The layout of a float type. ``codes`` is the unsigned integer type of the same size.

    ``infinity`` and ``normal`` are the codes of infinity and of the smallest number that is not denormal. For a type of
    16 bits, shifting the code to the left by ``shift`` gives the code of a float32 that is too small by ``factor``.
    ``small`` is the name of the type if it has 8 bits, else ''. If ``is_infinite`` is false, the type has no infinity,
    and ``infinity`` is the code of its NaN.
    """

    codes: np.dtype[Any]
    infinity: int
    normal: int
    shift: int = 0
    factor: float = 1.0
    small: str = ""
    is_infinite: bool = True

    @cached_property
    def sign(self) -> int:
        """The code in which only the sign bit is set."""
        return 1 << (8 * self.codes.itemsize - 1)

    @cached_property
    def signed(self) -> np.dtype[Any]:
        """The signed integer dtype of the same size as the codes."""
        return np.dtype(f"i{self.codes.itemsize}")

    @property
    def has_narrow_exponent(self) -> bool:
        """True for 8-bit floats and float16, in which many weights of a usual size are denormal."""
        return bool(self.small) or self.factor != 1

    @property
    def mask(self) -> np.int32:
        """The bits of a float32 that can be set by a code that was shifted by ``shift``."""
        return np.int32(((self.sign - 1) << self.shift) - (1 << 31))


LAYOUTS: Mapping[str, FloatLayout] = {
    "bfloat16": FloatLayout(np.dtype("u2"), 0x7F80, 0x0080, 16),
    "float16": FloatLayout(np.dtype("u2"), 0x7C00, 0x0400, 13, 2.0**112),
    "float8_e4m3fn": FloatLayout(np.dtype("u1"), 0x7F, 0x08, small="float8_e4m3fn", is_infinite=False),
    "float8_e5m2": FloatLayout(np.dtype("u1"), 0x7C, 0x04, small="float8_e5m2"),
    "float32": FloatLayout(np.dtype("u4"), 0x7F800000, 0x00800000),
    "float64": FloatLayout(np.dtype("u8"), 0x7FF << 52, 1 << 52),
}


def as_floats(codes: Array, out: Array, layout: FloatLayout) -> Array:
    """Return the values of codes; codes of 16 bits are converted to float32 in ``out``, by shifting their bits.

    For float16, the shifted value is multiplied by 2**112, because its exponent bias is smaller by 112 than that of
    float32. numpy's own conversion takes six times as long. Infinities and NaN may become finite: recognise them by
    their codes.

    Values of 8-bit types are looked up: weights that were cast without scales are mostly denormal, and a processor
    takes 30 ns to multiply a denormal number.
    """
    if layout.small:
        return from_small(codes, layout.small, out.view(np.float32))
    if not layout.shift:
        return codes.view(np.dtype(f"f{layout.codes.itemsize}"))
    bits = out.view(np.int32)
    np.copyto(bits, codes.view(layout.signed))
    np.left_shift(bits, layout.shift, out=bits)
    if layout.factor != 1:
        np.bitwise_and(bits, layout.mask, out=bits)
    return _multiplied(bits, layout)


def as_floats_in_any_order(codes: Array, out: Array, layout: FloatLayout) -> Array:
    """Return the values of codes, perhaps in another order; this is faster than ``as_floats``.

    Two codes of 16 bits are read as one integer of 32 bits. So all operations have operands of equal size, which numpy
    computes several times as fast as a conversion to larger integers.
    """
    if not layout.shift or codes.size % 2:
        return as_floats(codes, out, layout)
    pairs, bits, down = codes.view(np.int32), out.view(np.int32), 16 - layout.shift
    for half, up in zip(bits.reshape(2, -1), (16, 0), strict=True):
        moved = np.left_shift(pairs, up, out=half) if up else pairs
        moved = np.right_shift(moved, down, out=half) if down else moved
        np.bitwise_and(moved, layout.mask, out=half)
    return _multiplied(bits, layout)


def _multiplied(bits: Array, layout: FloatLayout) -> Array:
    values: Array = bits.view(np.float32)
    if layout.factor != 1:
        np.multiply(values, np.float32(layout.factor), out=values)
    return values


def extremes(codes: Array, layout: FloatLayout) -> tuple[int, int, tuple[float, float], bool]:
    """Return (smallest magnitude, largest magnitude, (lowest value, highest value), whether there is a negative zero).

    Magnitudes are codes without the sign bit. The values are only right if no code is an infinity or NaN.

    Floats have the same order as their codes as integers; negative floats have the reverse order. So the extremes of
    the codes as signed and as unsigned integers are sufficient, and integers are compared twice as fast.
    """
    signed, sign = codes.view(layout.signed), layout.sign
    last, first = int(_MAX(codes)), int(_MIN(codes))
    top, bottom = int(_MAX(signed)), int(_MIN(signed))
    if bottom >= 0:
        return first, last, (_value(first, layout), _value(last, layout)), False
    ends = _value(last, layout), _value(first if top < 0 else top, layout)
    if top < 0:
        return first - sign, last - sign, ends, first == sign
    return min(first, bottom + sign), max(top, last - sign), ends, bottom == -sign


_MAX, _MIN = np.maximum.reduce, np.minimum.reduce


@lru_cache(1 << 12)
def _value(code: int, layout: FloatLayout) -> float:
    """Return the value of one code; an array of one element would take ten times as long."""
    if layout.small:
        return float(from_small(np.array([code], np.uint8), layout.small)[0])
    if layout.codes.itemsize == 8:
        return float(unpack("<d", pack("<Q", code))[0])
    if layout.shift:
        code = (code & layout.sign) << 16 | (code & layout.sign - 1) << layout.shift
    return float(unpack("<f", pack("<I", code))[0]) * layout.factor
