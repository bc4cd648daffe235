"""Computes means, sums and products in double precision, and rounds once. The module uses numpy and opens no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ...errors import PlanError
from ...util.text import count
from ..dtypes import DTYPES
from .casts import CACHED, CastLosses, cast, raw_dtype, widened
from .powers import odd_ones, power_of, with_exponents
from .regions import Array

__all__ = ["added", "average", "exp_of", "largest", "rounded", "scaled"]

Part = tuple[Array, str]
"""An array of the type that ``raw_dtype`` returns, and the dtype of its values."""


def average(parts: Iterable[Part], weights: Sequence[float]) -> Part:
    """Return the mean or the weighted sum of arrays in double precision, and the dtype of the result.

    ``parts`` are pairs (array, dtype of its values). If ``weights`` is empty, the result is the mean. Arrays are added
    one after the other, so that an iterator needs only one array in memory at a time. The arrays must be all real or
    all complex.
    """
    total, wide, number = np.empty(0), "float64", 0
    for values, dtype in parts:
        plain = np.asarray(widened(values, dtype))
        if not number:
            wide = "complex128" if DTYPES[dtype].kind == "complex" else "float64"
            total = plain.astype(raw_dtype(wide))
            if weights:
                total *= weights[0]
        else:  # dtype: otherwise the product would be rounded to the type of the values
            np.add(total, np.multiply(plain, weights[number], dtype=total.dtype) if weights else plain, out=total)
        number += 1
    if not weights and number & (number - 1):
        total /= number
    elif not weights:
        total *= 1 / number  # of a power of two: the same result, but a product is computed faster
    return total, wide


def largest(parts: Iterable[Part]) -> Part:
    """Return the element-wise maximum of several integer arrays, and the widest of their dtypes.

    ``parts`` are pairs (array, dtype of its values).
    """
    found: Part | None = None
    for values, dtype in parts:
        if found is None:
            found = values, dtype
        else:
            wide = max(dtype, found[1], key=lambda name: DTYPES[name].bits)
            found = np.maximum(found[0], values), wide
    assert found is not None
    return found


def rounded(values: Array, wide: str, dtype: str) -> tuple[Array, CastLosses]:
    """Return double-precision values rounded once to ``dtype``, and how many became infinite (or were clipped) or zero.

    ``wide`` is the dtype of the values, float64 or complex128. ``cast`` would round twice, since it goes through
    float32. Raises PlanError if a value is negative and ``dtype`` has no negative numbers.
    """
    want = DTYPES[dtype]
    if dtype == "float8_e8m0fnu" and (values < 0).any():
        raise PlanError(f"a value is below zero, and {dtype} has no negative numbers.")
    if not want.is_floating or want.bits >= (64 if want.kind == "complex" else 32):
        return cast(values, wide, dtype)
    if wide == "complex128":
        pairs = np.ascontiguousarray(values).view("<f8")
        return cast(_odd(pairs).view("<c8").reshape(values.shape), "complex64", dtype)
    return cast(_odd(values), "float32", dtype)


_TIES = 0xFFF
"""A mask of the lowest 12 bits of a float32. Only values in which these bits are 0 may be ties.

A tie is halfway between two neighbouring values with significands of 11 bits, so its own significand has 12 bits.
"""
SHARE = 16
"""If more than one in this many values may be a tie, all values are rounded to odd, which is then faster."""


def _odd(values: Array) -> Array:
    """Return float64 values as float32 values that can be rounded again, to a significand of at most 11 bits.

    The result of the second rounding is the same as if the float64 values had been rounded once. For this, a value that
    may become a tie in float32 is rounded to odd instead of to nearest: it is rounded towards zero, and if the result
    is not exact, its last bit is set to 1 (Boldo and Melquiond 2008, https://inria.hal.science/inria-00080427).
    """
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        near = flat.astype("<f4")
        bits = near.view("<u4")
        at = np.flatnonzero(bits & _TIES == 0)
        if at.size * SHARE > flat.size:  # values of 16 bits and their means often have few bits
            back = near.astype("<f8")
            if not np.array_equal(back, flat):
                bits -= np.abs(back) > np.abs(flat)
                bits |= back != flat
            return near.reshape(values.shape)
        there, back = flat[at], near[at].astype("<f8")
        bits[at] = bits[at] - (np.abs(back) > np.abs(there)) | (back != there)
    return near.reshape(values.shape)


def scaled(values: Array, dtype: str, factor: float) -> Array:
    """Return values times ``factor``, rounded to their dtype; raises PlanError if one exceeds the dtype's range."""
    single, power = _is_exact_in_single(dtype, factor), power_of(dtype, factor)

    def product(at: slice) -> tuple[Array, CastLosses]:
        piece = flat[at]
        if power is not None:
            bits = piece.view("<u2")
            odd = odd_ones(bits, dtype, power)
            if odd.size * SHARE <= bits.size:
                made = with_exponents(bits, dtype, power).view(piece.dtype)
                made[odd], lost = exact(piece[odd])
                return made, lost
        return exact(piece)

    def exact(piece: Array) -> tuple[Array, CastLosses]:
        if not single:
            return rounded(*average([(piece, dtype)], [factor]), dtype)
        wide = widened(piece, dtype)
        made = wide * np.float32(factor)
        infinite = 0 if abs(factor) <= 1 else int(np.isinf(made).sum()) - int(np.isinf(wide).sum())
        narrow, lost = cast(made, "float32", dtype)
        return narrow, lost + CastLosses(infinite)

    flat = values.reshape(-1)
    made, lost = _in_pieces(product, flat.size, dtype)
    if lost.infinite:
        raise PlanError(
            f"{count(lost.infinite, 'value')} times {factor:g} would exceed the range of {dtype}.",
            hint="Use a smaller factor, or cast to a wider dtype first.",
        )
    return made.reshape(values.shape)


def exp_of(number: Array, dtype: str) -> float:
    """Return e to the power of the only element of an array of ``dtype``; raises PlanError if that is not finite."""
    exponent = float(cast(number, dtype, "float64")[0].reshape(-1)[0])
    try:
        factor = math.exp(exponent)
    except OverflowError:
        factor = math.inf
    if not math.isfinite(factor):
        raise PlanError(
            f"the tensor with the exponent has the value {exponent:g}, and e to this power is infinite or NaN.",
            hint="Correct this value first.",
        )
    return factor


def _is_exact_in_single(dtype: str, factor: float) -> bool:
    """Return whether float32 suffices to multiply: the rounded product is the same as with double precision.

    A product of two float32 numbers is exact in double precision, so it is rounded once either way. In the narrower
    types of 16 bits, a power of two near 1 only changes the exponent.
    """
    if dtype == "float32":
        return abs(factor) < 2.0**128 and float(np.float32(factor)) == factor
    mantissa, exponent = math.frexp(factor)
    return dtype in ("bfloat16", "float16") and abs(mantissa) == 0.5 and abs(exponent) <= 16


def added(parts: Sequence[Array], dtype: str, *, is_mean: bool = False, weights: Sequence[float] = ()) -> Array:
    """Return the sum of arrays of the dtype ``dtype``, or their mean if ``is_mean``, rounded to this dtype.

    In a sum, each array is multiplied by its weight, if there are ``weights``. Raises PlanError if a value
    exceeds the range of the dtype.
    """
    factors = () if is_mean else weights or [1.0] * len(parts)
    flat = [values.reshape(-1) for values in parts]
    made, lost = _in_pieces(
        lambda at: rounded(*average([(one[at], dtype) for one in flat], factors), dtype), flat[0].size, dtype
    )
    if lost.infinite:
        raise PlanError(
            f"{count(lost.infinite, 'value')} of the sum would exceed the range of {dtype}.",
            hint="Cast the tensors to a wider dtype first.",
        )
    return made.reshape(parts[0].shape)


def _in_pieces(compute: Callable[[slice], tuple[Array, CastLosses]], size: int, dtype: str) -> tuple[Array, CastLosses]:
    """Return the results of ``compute`` for all pieces of a flat array of ``size`` elements, and the sum of the losses.

    So double precision needs memory for one piece only.
    """
    made, lost = np.empty(size, raw_dtype(dtype)), CastLosses()
    for begin in range(0, size, CACHED):
        at = slice(begin, begin + CACHED)
        with np.errstate(all="ignore"):  # values that become infinite are counted
            made[at], more = compute(at)
        lost += more
    return made, lost
