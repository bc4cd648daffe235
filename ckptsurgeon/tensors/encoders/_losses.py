"""Measures how far numbers are from those that their codes stand for."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from ...errors import PlanError
from ...util.text import escape
from ..ops.regions import Array

__all__ = ["RoundingLoss", "loss_of"]


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """How far numbers are from those that their codes stand for.

    ``squares`` is the sum of the squared differences, ``of`` that of the squared numbers, ``largest`` the largest
    difference.
    """

    squares: float = 0.0
    of: float = 0.0
    largest: float = 0.0

    def __add__(self, other: RoundingLoss) -> RoundingLoss:
        return RoundingLoss(self.squares + other.squares, self.of + other.of, max(self.largest, other.largest))

    @property
    def relative(self) -> float:
        """The Frobenius norm of the differences over that of the numbers; 0 if all numbers are 0."""
        return sqrt(self.squares / self.of) if self.of else 0.0


def loss_of(values: Array, meant: Array, name: str) -> RoundingLoss:
    """Return what is lost if ``meant`` stands for ``values``; raises PlanError, with ``name``, if it is not finite."""
    if not values.size:
        return RoundingLoss()
    exact = values.astype("<f8").reshape(-1)
    difference = meant.astype("<f8").reshape(-1) - exact
    largest = float(np.abs(difference).max())
    if not isfinite(largest):
        raise PlanError(
            f"{escape(name)} is so large that its codes would stand for infinite numbers.",
            hint="Another scheme may hold it: fp8-channel and fp8-block do.",
        )
    return RoundingLoss(float(difference @ difference), float(exact @ exact), largest)
