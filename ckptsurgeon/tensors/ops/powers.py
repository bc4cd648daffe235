"""Multiplies 16-bit floats by powers of two: only their exponents change. The module uses numpy and opens no file."""

from __future__ import annotations

import math

import numpy as np

from .regions import Array

__all__ = ["odd_ones", "power_of", "with_exponents"]

_FRACTION = {"bfloat16": 7, "float16": 10}
"""{dtype of 16 bits: its number of fraction bits, which are those below the exponent}."""
_SIGNLESS = np.uint16(0x7FFF)
_INFINITE = {"bfloat16": 0x7F80, "float16": 0x7C00}
"""{dtype: bits of infinity}."""


def power_of(dtype: str, factor: float) -> int | None:
    """Return n if ``factor`` is 2 ** n, n is from -15 to 15, and ``dtype`` is a 16-bit float; otherwise return None."""
    mantissa, exponent = math.frexp(factor)
    return exponent - 1 if dtype in _FRACTION and mantissa == 0.5 and abs(exponent - 1) < 16 else None


def odd_ones(bits: Array, dtype: str, power: int) -> Array:
    """Return the indices of the values that cannot be multiplied by 2 ** ``power`` by changing only their exponents.

    These are zeros, infinities, NaN, and numbers that are subnormal or too large, before or after the multiplication.
    ``bits`` is a flat array of the values' bits.
    """
    unit = 1 << _FRACTION[dtype]
    least = unit * max(1, 1 - power)  # the smallest number that is normal before and afterwards
    beyond = _INFINITE[dtype] - unit * max(0, power)
    above = bits & _SIGNLESS
    above -= np.uint16(least)  # numbers below become large
    return np.flatnonzero(above >= np.uint16(beyond - least))


def with_exponents(bits: Array, dtype: str, power: int) -> Array:
    """Return the bits of values times 2 ** ``power``; no value may be one of those that ``odd_ones`` finds."""
    made: Array = bits + np.uint16((power << _FRACTION[dtype]) % (1 << 16))
    return made
