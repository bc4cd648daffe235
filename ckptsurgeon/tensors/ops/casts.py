"""Casts values as torch does, and counts values that are not finite. The module uses numpy and opens no file.

If numpy lacks a type, an array contains the bits as unsigned integers: a bfloat16 array is an array of uint16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import PlanError
from ..dtypes import DTYPES, SATURATED
from .half_floats import from_half, to_half
from .regions import Array
from .small_floats import SMALL_FLOATS, from_small, to_small

__all__ = [
    "CACHED",
    "CastLosses",
    "bfloat16_sums",
    "cast",
    "count_nonzero",
    "count_special",
    "goes_to_zero",
    "raw_dtype",
    "to_bfloat16",
    "widened",
]

CACHED = 1 << 17
"""How many values are computed at once: so few stay in a core's cache meanwhile. Each call of NumPy takes time, too."""


@dataclass(frozen=True, slots=True)
class CastLosses:
    """How many values a cast lost: ``infinite`` became infinite or were clipped, ``zero`` became zero.

    If ``are_finite`` is true, no value is infinite or NaN, so that nobody need count them again.
    """

    infinite: int = 0
    zero: int = 0
    are_finite: bool = field(default=False, compare=False)

    def __add__(self, other: CastLosses) -> CastLosses:
        return CastLosses(self.infinite + other.infinite, self.zero + other.zero)


_NATIVE = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "int64": "<i8", "int32": "<i4", "int16": "<i2",
    "int8": "i1", "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "u1", "bool": "u1",
    "complex128": "<c16", "complex64": "<c8",
}  # fmt: skip


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of arrays with values of ``dtype``; for a type that numpy lacks, an unsigned integer."""
    return np.dtype(_NATIVE.get(dtype) or f"<u{max(1, DTYPES[dtype].bits // 8)}")


def cast(array: Array, source: str, destination: str) -> tuple[Array, CastLosses]:
    """Return values cast from ``source`` to ``destination`` as torch casts them, and how many values were lost.

    Both arrays have the type that ``raw_dtype`` returns. Casts to fewer bits go through float32, as in torch. Values
    that become zero are counted only if ``goes_to_zero`` is true for the two dtypes. Raises PlanError if a value is
    outside the range of an integer dtype.
    """
    if source == destination:
        return array, CastLosses()
    if array.size > CACHED and _takes_many_arrays(source, destination):
        return _cast_in_pieces(array, source, destination)
    with np.errstate(all="ignore"):
        plain = widened(array, source)
        if DTYPES[destination].kind in ("int", "uint"):
            return _to_integer(plain, destination), CastLosses()
        made = _narrowed(plain, destination)
        infinite = 0 if _holds(destination, source) else _new_infinities(plain, made, destination)
    zero = 0
    if goes_to_zero(source, destination):
        zero = int(np.count_nonzero(plain != 0)) - count_nonzero(made, destination)
    return made, CastLosses(infinite, zero)


def _takes_many_arrays(source: str, destination: str) -> bool:
    """Return whether a cast makes several arrays as long as its input, which would not stay in a core's cache."""
    is_short = destination in ("bfloat16", "float16") or destination in SMALL_FLOATS
    return is_short and (source, destination) != ("float32", "bfloat16")  # ``to_bfloat16`` has pieces of its own


def _cast_in_pieces(array: Array, source: str, destination: str) -> tuple[Array, CastLosses]:
    """Return what ``cast`` returns; ``CACHED`` values are cast at once."""
    flat, lost = array.reshape(-1), CastLosses()
    made = np.empty(flat.shape, raw_dtype(destination))
    for begin in range(0, flat.size, CACHED):
        made[begin : begin + CACHED], more = cast(flat[begin : begin + CACHED], source, destination)
        lost += more
    return made.reshape(array.shape), lost


def _holds(destination: str, source: str) -> bool:
    """Return whether every finite value of the dtype ``source`` stays finite in ``destination``."""
    return _reach(destination) > _reach(source) or (source, destination) == ("bfloat16", "float32")


_POWERS = {
    "float64": 1024, "float32": 128, "bfloat16": 128, "float16": 16, "bool": 1, "float8_e4m3fn": 9, "float8_e5m2": 16,
    "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 16, "float8_e8m0fnu": 128,
}  # fmt: skip


def _reach(dtype: str) -> int:
    """Return the exponent of the smallest power of two that is above all finite values of a dtype."""
    dtype = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}.get(dtype, dtype)
    return _POWERS.get(dtype) or DTYPES[dtype].bits


def widened(array: Array, dtype: str) -> Array:
    """Return values as float32 or another type that numpy can compute with; ``array`` has the type of ``raw_dtype``.

    For example, bfloat16 is given as uint16 and returned as float32.
    """
    if dtype == "bfloat16":
        bits: Array = array.astype("<u4")
        bits <<= np.uint32(16)  # in place: a second array costs more than the shift
        return bits.view("<f4")
    if dtype in SMALL_FLOATS:
        return from_small(array, dtype)
    if dtype == "bool":
        truth: Array = array != 0
        return truth
    if dtype == "complex32":
        pairs = array.view("<f2").astype("<f4")
        array = pairs.view("<c8").reshape(array.shape)
    return array


def _narrowed(plain: Array, dtype: str) -> Array:
    """Return values cast to a dtype that is not an integer, in an array of the type that ``raw_dtype`` returns."""
    if dtype == "bfloat16":
        return to_bfloat16(plain.astype("<f4", copy=False))
    if dtype in SMALL_FLOATS:
        return to_small(plain.astype("<f4", copy=False), dtype)
    if dtype == "float16":
        return to_half(plain.astype("<f4", copy=False))
    if dtype == "float32" and plain.dtype == "<f2":
        return from_half(plain)
    if dtype == "complex32":
        pairs = np.ascontiguousarray(plain.astype("<c8")).view("<f4").astype("<f2")
        return pairs.view("<u4").reshape(plain.shape)
    if dtype == "bool":
        return plain.astype("u1")
    return plain.astype(raw_dtype(dtype))


def to_bfloat16(values: Array) -> Array:
    """Return the bits of float32 values rounded to the nearest bfloat16, ties to even; each NaN becomes torch's NaN.

    Only ``CACHED`` values are rounded at once, because their bits are read and written six times.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    made = np.empty(flat.shape, "<u2")
    rounded = np.empty(min(CACHED, flat.size), "<u4")
    for begin in range(0, flat.size, CACHED):
        some, bits = flat[begin : begin + CACHED], made[begin : begin + CACHED]
        _round_bits(some, rounded[: flat.size - begin], bits)
        if np.isnan(some.max()):  # the largest value is NaN if any is
            bits[np.isnan(some)] = 0x7FC0
    return made.reshape(values.shape)


def bfloat16_sums(base: Array, change: Array) -> Array:
    """Return the bfloat16 bits of ``base + change``, rounded as ``to_bfloat16`` rounds, but without its change of NaN.

    ``to_bfloat16`` gives every NaN the bits of torch's NaN; here, a NaN may have other bits. ``base`` is a matrix of
    bfloat16 bits, ``change`` a matrix of float32 of the same shape. The last 16 bits of each NaN in ``change`` must be
    0, as they are in a NaN that was computed from numbers. The sum's last 16 bits are then 0, too, and rounding keeps
    the NaN. Rounding could turn a NaN with other bits into 0. A few rows are computed at once, in the same memory.
    """
    made = np.empty(base.shape, "<u2")
    rows = max(1, CACHED // 2 // max(1, base.shape[1]))
    wide, rounded = np.empty((2, min(rows, len(base)), base.shape[1]), "<u4")
    for top in range(0, len(base), rows):
        some = base[top : top + rows]
        bits = wide[: len(some)]
        np.copyto(bits, some)
        bits <<= np.uint32(16)
        sums = bits.view("<f4")
        sums += change[top : top + rows]
        _round_bits(sums, rounded[: len(some)], made[top : top + rows])
    return made


def _round_bits(values: Array, rounded: Array, made: Array) -> None:
    """Write the bits of float32 values, rounded to bfloat16, to ``made``; ``rounded`` is work space."""
    bits = values.view("<u4")
    np.right_shift(bits, np.uint32(16), out=rounded)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    np.copyto(made, rounded, casting="unsafe")


def _to_integer(plain: Array, dtype: str) -> Array:
    wanted = raw_dtype(dtype)
    if plain.size and plain.dtype != bool:
        low, high = int(plain.min()), int(plain.max())
        limits = np.iinfo(wanted)
        if low < limits.min or high > limits.max:
            value = low if low < limits.min else high
            raise PlanError(f"the value {value} does not fit {dtype}.", hint="Use --dtype keep.")
    return plain.astype(wanted)


def _new_infinities(plain: Array, made: Array, dtype: str) -> int:
    if dtype in SATURATED:  # NaN is not counted: the comparison is false for it
        return int(np.count_nonzero(np.abs(plain) > SATURATED[dtype]))
    if dtype in _FIRST and not _reaches(made, _FIRST[dtype]):
        return 0
    after = widened(made, dtype)
    return int(np.count_nonzero(~np.isfinite(after) & np.isfinite(plain)))


_SMALLEST = {
    "float64": -1074, "float32": -149, "bfloat16": -133, "float16": -24,
    "float8_e5m2fnuz": -17, "float8_e5m2": -16, "float8_e4m3fnuz": -10, "float8_e4m3fn": -9,
}  # fmt: skip
"""The exponent of the smallest positive value of each dtype, which is a power of two."""
_NARROW = {
    "float16": 0x7FFF,
    "float8_e5m2": 0x7F,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2fnuz": 0xFF,
    "float8_e4m3fnuz": 0xFF,
}
"""{dtype in which small weights may become zero: bit mask}; a value is zero if all bits of the mask are 0."""


def goes_to_zero(source: str, destination: str) -> bool:
    """Return whether a cast from ``source`` to ``destination`` can turn small weights into zeros."""
    return destination in _NARROW and source in _SMALLEST and _SMALLEST[source] < _SMALLEST[destination]


def count_nonzero(values: Array, dtype: str) -> int:
    """Return the number of values other than zero; ``dtype`` must be a key of ``_NARROW``, a float of 8 or 16 bits.

    ``values`` has the numpy type that ``raw_dtype`` returns.
    """
    bits = values.view(f"<u{values.itemsize}")
    return int(np.count_nonzero(bits & bits.dtype.type(_NARROW[dtype])))


_EXPONENTS = {"bfloat16": (0x7FFF, 0x7F80), "float16": (0x7FFF, 0x7C00), "float8_e5m2": (0x7F, 0x7C)}
"""{dtype: (mask of the exponent and fraction bits, masked bits of infinity)}; larger masked bits are NaN."""
_NAN_ONLY = {
    "float8_e4m3fn": (0x7F, 0x7F),
    "float8_e4m3fnuz": (0xFF, 0x80),
    "float8_e5m2fnuz": (0xFF, 0x80),
    "float8_e8m0fnu": (0xFF, 0xFF),
}
"""{8-bit float without infinities: (mask, masked bits of NaN)}."""


_FIRST = {"bfloat16": 0x7F80, "float16": 0x7C00, "float8_e5m2": 0x7C, "float8_e4m3fn": 0x7F}
"""{dtype: bits, without the sign, of the smallest value that is not finite}; values with larger bits are not finite."""


def _reaches(values: Array, first: int) -> bool:
    """Return whether the bits of any value, without the sign, are at least ``first``; the array is not copied."""
    if not values.size:
        return False
    bits = 8 * values.itemsize
    below, above = values.view(f"<i{values.itemsize}"), values.view(f"<u{values.itemsize}")
    return bool(below.max() >= first or above.max() >= first | 1 << (bits - 1))


def count_special(values: Array, dtype: str) -> tuple[int, int]:
    """Return the numbers of NaN and of infinite values; the array has the type that ``raw_dtype`` returns."""
    if dtype == "complex32":
        values = values.view("<f2").astype("<f4").view("<c8")
    if dtype in _FIRST and not _reaches(values, _FIRST[dtype]):
        return 0, 0
    if dtype in _EXPONENTS:
        mask, infinity = _EXPONENTS[dtype]
        bits = values.view(f"<u{values.itemsize}") & mask
        return int(np.count_nonzero(bits > infinity)), int(np.count_nonzero(bits == infinity))
    if dtype in _NAN_ONLY:
        mask, nan_bits = _NAN_ONLY[dtype]
        return int(np.count_nonzero((values & mask) == nan_bits)), 0
    if values.dtype.kind not in "fc" or np.isfinite(values).all():
        return 0, 0
    nan = int(np.count_nonzero(np.isnan(values)))
    return nan, int(np.count_nonzero(~np.isfinite(values))) - nan
