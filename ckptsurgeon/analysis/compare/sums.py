"""Sums of products of numbers of any magnitude: the square of 1e200 is no double, nor is that of 1e-200."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...tensors.ops.boxes import Array

__all__ = ["ZERO", "Scaled", "Sum", "dot", "finite", "norm", "quotient", "scaled"]

SAFE = 400
"""Powers of two whose squares, summed over any tensor, are doubles."""


@dataclass(frozen=True)
class Sum:
    """A sum, ``value`` times two to the power of ``exponent``."""

    value: float = 0.0
    exponent: int = 0

    def __add__(self, other: Sum) -> Sum:
        if not self.value or not other.value:
            return self if self.value else other
        top = max(self.exponent, other.exponent)
        values = (math.ldexp(one.value, one.exponent - top) for one in (self, other))
        return Sum(sum(values), top)


ZERO = Sum()


@dataclass(frozen=True)
class Scaled:
    """Values as doubles, over two to the power of ``exponent`` where their magnitude asks for it."""

    values: Array
    exponent: int = 0


def scaled(values: Array) -> Scaled:
    """Return values whose products can be summed."""
    if values.dtype.kind in "iu":
        return Scaled(values.astype("<f8"))
    largest = _largest(values)
    power = max(math.frexp(largest)[1], -1000) if math.isfinite(largest) else 0
    return Scaled(values) if abs(power) < SAFE else Scaled(values * 2.0**-power, power)


def _largest(values: Array) -> float:
    if values.dtype.kind == "c":
        return float(np.abs(values).max(initial=0.0))
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))  # without an array of magnitudes


def dot(x: Scaled, y: Scaled) -> Sum:
    """Return the sum of the products of two vectors, the real part where they are complex."""
    return Sum(float(np.vdot(x.values, y.values).real), x.exponent + y.exponent)


def norm(squares: Sum) -> Sum:
    """Return the root of a sum of squares, whose exponent is even."""
    return Sum(math.sqrt(squares.value), squares.exponent // 2)


def quotient(of: Sum, *by: Sum) -> float | None:
    """Return a sum over others; None where one of those is zero, or what comes out is no finite double."""
    if not all(one.value for one in by):
        return None
    value = of.value
    for one in by:
        value /= one.value
    return finite(value, of.exponent - sum(one.exponent for one in by))


def finite(value: float, exponent: int = 0) -> float | None:
    """Return a number times a power of two, None where it is beyond the doubles."""
    try:
        value = math.ldexp(value, exponent)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
