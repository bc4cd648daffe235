"""Linear combinations: the method ``linear``, and the weighted sums of other methods, element by element."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import frexp, fsum, ldexp

from ...errors import PlanError
from ...tensors.ops.regions import Array
from ._method import PerModel, merge_method
from ._slices import Merging, Slice, Tensors, in_pieces

__all__ = ["METHODS", "cancel", "check_some", "combination", "held", "shares"]


@merge_method(
    "linear", paper="https://arxiv.org/abs/2203.05482", compared="mergekit 0.1.5: equal within 1e-6", elementwise=True
)
def linear(tensors: Tensors, *, weight: PerModel, normalize: bool = True) -> Merging:
    """Return the weighted mean of the models, or their weighted sum if ``normalize`` is off."""
    return combination(shares(weight) if normalize else weight)


def combination(factors: Iterable[float]) -> Merging:
    """Return a function that merges: base + sum of factor * (model - base), or sum of factor * model without a base."""
    numbers = [float(factor) for factor in factors]
    widened = cancel(numbers)

    def merged(at: Slice) -> Array:
        deltas = at.wide(at.deltas) if widened else at.deltas
        total = deltas[0] * numbers[0]
        for delta, number in zip(deltas[1:], numbers[1:], strict=True):
            total += delta * number
        return at.onto(total)

    return in_pieces(merged)


# The weights in such sums: checks and scaling.

_TINY = 1e-8
"""A sum of weights counts as zero if it is below this share of the sum of their magnitudes (as in mergekit)."""
_CANCELS = 0.125
"""If a sum of weights is below this share of the sum of their magnitudes, float32 loses more than three bits in it."""


def shares(weights: Sequence[float], switch: str = "normalize") -> list[float]:
    """Return the weights divided by their sum; raises PlanError if the sum is zero.

    ``switch`` is the name of the parameter that asked for this, for the message.
    """
    near_one = _scaled(weights)
    total = fsum(near_one)
    if abs(total) <= _TINY * fsum(map(abs, near_one)):
        raise _refused(weights, "sum to zero", switch, "their sum")
    return [each / total for each in near_one]


def held(weights: Sequence[float]) -> Sequence[float]:
    """Return weights in the same proportions as ``weights``, in a range that float32 can represent.

    If the weights are too large or too small for float32, all are multiplied by the same power of two. So the caller
    may use only their proportions.
    """
    return weights if 2.0**-100 < max(map(abs, weights)) < 2.0**100 else _scaled(weights)


def _scaled(weights: Sequence[float]) -> list[float]:
    """Return weights times a power of two, so that the largest magnitude is between 0.5 and 1."""
    exponent = frexp(max(map(abs, weights), default=0.0))[1]
    return [ldexp(each, -exponent) for each in weights]


def cancel(weights: Sequence[float]) -> bool:
    """Return whether the sum of ``weights`` is nearly zero, so that weighted sums need double precision."""
    near_one = _scaled(weights)
    return abs(fsum(near_one)) < _CANCELS * fsum(map(abs, near_one))


def check_some(weights: Sequence[float], switch: str = "normalize") -> None:
    """Raise PlanError if all weights are zero, because elements are divided by sums of weights.

    ``switch`` is the name of the parameter that asked for this, for the message.
    """
    if not any(weights):
        raise _refused(weights, "are all zero", switch, "them")


def _refused(weights: Sequence[float], why: str, switch: str, by: str) -> PlanError:
    listed = ", ".join(f"{one:g}" for one in weights)
    return PlanError(
        f"the weights {why} ({listed}), and {switch} divides by {by}.",
        hint=f"Give other weights, or --param {switch}=false for the weighted sum.",
    )


METHODS = (linear,)
