"""Weights that are divided by: what normalising needs of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PlanError

__all__ = ["check_some", "sum_of"]

_TINY = 1e-8
"""Below it a sum of weights is zero, as for mergekit."""


def sum_of(weights: Sequence[float], switch: str = "normalize") -> float:
    """Return the sum that the weights are divided by with ``switch``; raises PlanError where it is zero."""
    total = sum(weights)
    if abs(total) < _TINY:
        raise _refused(weights, "sum to zero", switch, "their sum")
    return total


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
