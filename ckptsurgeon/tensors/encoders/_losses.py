"""Measures the differences between numbers and their quantised values."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

from ...errors import PlanError
from ...util.text import escape
from ..ops.regions import Array

__all__ = ["RoundingLoss", "loss_of"]


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """The differences between numbers and their quantised values.

    ``squares`` is the sum of the squared differences, ``of`` the sum of the squared numbers, ``largest`` the largest
    absolute difference.
    """

    squares: float = 0.0
    of: float = 0.0
    largest: float = 0.0

    def __add__(self, other: RoundingLoss) -> RoundingLoss:
        return RoundingLoss(self.squares + other.squares, self.of + other.of, max(self.largest, other.largest))

    @property
    def relative(self) -> float:
        """The Frobenius norm of the differences, divided by the norm of the numbers; 0 if all numbers are 0."""
        return sqrt(self.squares / self.of) if self.of else 0.0


def loss_of(values: Array, meant: Array, name: str) -> RoundingLoss:
    """Return the loss of rounding ``values`` to codes that are decoded to ``meant``.

    Raises PlanError if a decoded value is infinite; ``name`` is the tensor's name in the message.
    """
    if not values.size:
        return RoundingLoss()
    exact = values.astype("<f8").reshape(-1)
    difference = meant.astype("<f8").reshape(-1) - exact
    largest = max(float(difference.max()), -float(difference.min()))
    if not isfinite(largest):
        raise PlanError(
            f"{escape(name)} has values so large that its codes would be decoded to infinity.",
            hint="In ckpt convert --quantize, use a scheme of larger range (fp8-channel or fp8-block), or --exclude.",
        )
    return RoundingLoss(float(difference @ difference), float(exact @ exact), largest)
