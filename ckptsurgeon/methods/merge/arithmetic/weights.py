"""Weights that are divided by: what normalising needs of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, fsum, ldexp

from ....errors import PlanError

__all__ = ["cancel", "check_some", "held", "shares"]

_TINY = 1e-8
"""A sum of weights is zero below this part of the sum of their sizes (mergekit: below it, whatever their sizes)."""

_CANCELS = 0.125
"""Of weights whose sum is a smaller part of the sum of their sizes, float32 would lose more than three bits."""


def shares(weights: Sequence[float], switch: str = "normalize") -> list[float]:
    """Return the weights divided by their sum, with ``switch``; raises PlanError where it is zero."""
    near_one = _scaled(weights)
    total = fsum(near_one)
    if abs(total) <= _TINY * fsum(map(abs, near_one)):
        raise _refused(weights, "sum to zero", switch, "their sum")
    return [each / total for each in near_one]


def held(weights: Sequence[float]) -> Sequence[float]:
    """Return weights of which only the proportions count, times a power of two where float32 does not hold them."""
    return weights if 2.0**-100 < max(map(abs, weights)) < 2.0**100 else _scaled(weights)


def _scaled(weights: Sequence[float]) -> list[float]:
    """Return weights times a power of two, the largest of them then from 0.5 to 1."""
    exponent = frexp(max(map(abs, weights), default=0.0))[1]
    return [ldexp(each, -exponent) for each in weights]


def cancel(weights: Sequence[float]) -> bool:
    """Whether weights take most of each other away, so that their sums are computed in double precision."""
    near_one = _scaled(weights)
    return abs(fsum(near_one)) < _CANCELS * fsum(map(abs, near_one))


def check_some(weights: Sequence[float], switch: str = "normalize") -> None:
    """Raise PlanError where no model counts: each element is divided by the weights of those merged there."""
    if not any(weights):
        raise _refused(weights, "are all zero", switch, "them")


def _refused(weights: Sequence[float], why: str, switch: str, by: str) -> PlanError:
    said = ", ".join(f"{one:g}" for one in weights)
    return PlanError(
        f"the weights {why} ({said}), and {switch} divides by {by}.",
        hint=f"Give others, or --param {switch}=false for the weighted sum.",
    )
