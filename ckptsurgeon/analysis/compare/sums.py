"""Sums of products of numbers of any magnitude.

A double cannot hold the square of 1e200, nor the square of 1e-200. So sums are stored with a separate binary exponent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...tensors.ops.regions import Array

__all__ = ["ZERO", "ScaledValues", "Sum", "dot", "finite", "norm", "quotient", "scaled"]

SAFE = 400
"""The largest binary exponent of values whose squares can be summed over any tensor without overflow of doubles."""


@dataclass(frozen=True)
class Sum:
    """A sum that cannot overflow: ``value`` times two to the power of ``exponent``."""

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
class ScaledValues:
    """Values as doubles, divided by two to the power of ``exponent``, which is 0 except for extreme magnitudes."""

    values: Array
    exponent: int = 0


def scaled(values: Array) -> ScaledValues:
    """Return values, divided by a power of two if their products could overflow or underflow otherwise."""
    if values.dtype.kind in "iu":
        return ScaledValues(values.astype("<f8"))
    largest = _largest(values)
    power = max(math.frexp(largest)[1], -1000) if math.isfinite(largest) else 0
    return ScaledValues(values) if abs(power) < SAFE else ScaledValues(values * 2.0**-power, power)


def _largest(values: Array) -> float:
    if values.dtype.kind == "c":
        return float(np.abs(values).max(initial=0.0))
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))  # avoids an array of magnitudes


def dot(x: ScaledValues, y: ScaledValues) -> Sum:
    """Return the dot product of two vectors; for complex vectors, the real part of the sum of conj(x) times y."""
    return Sum(float(np.vdot(x.values, y.values).real), x.exponent + y.exponent)


def norm(squares: Sum) -> Sum:
    """Return the square root of a sum of squares; the binary exponent of the sum must be even."""
    return Sum(math.sqrt(squares.value), squares.exponent // 2)


def quotient(of: Sum, *by: Sum) -> float | None:
    """Return the sum ``of`` divided by all sums in ``by``.

    Returns None if a divisor is zero, or a double cannot hold the result.
    """
    if not all(one.value for one in by):
        return None
    value = of.value
    for one in by:
        value /= one.value
    return finite(value, of.exponent - sum(one.exponent for one in by))


def finite(value: float, exponent: int = 0) -> float | None:
    """Return ``value`` times two to the power of ``exponent``; None if a double cannot hold the result."""
    try:
        value = math.ldexp(value, exponent)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
