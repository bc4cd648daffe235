"""How far a loss fell, and how far it seems to where nothing is learned: batches differ, and dropout draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["MIN_STEPS", "LossDrop", "loss_drop"]

MIN_STEPS = 6
"""Steps of which a fall can be told from noise: three at each end."""
SHARE = 10
ERRORS = 2.0
"""Standard errors beyond which a fall is no chance: of losses that only vary, one run in 20 to 40 seems to fall."""
ROUNDED = 1e-3
"""The share of a loss below which a fall is nothing: so much does half precision round."""
OF_NORMAL = 0.6745 * math.sqrt(2)
"""The median difference of two normal values, in standard deviations."""


@dataclass(frozen=True)
class LossDrop:
    """The mean loss of the first and of the last ``steps`` steps, and by how much the two differ by chance."""

    first: float
    last: float
    noise: float
    steps: int

    @property
    def is_clear(self) -> bool:
        """Whether the loss fell by more than its noise."""
        return self.first - self.last > self.noise


def loss_drop(losses: Sequence[float]) -> LossDrop | None:
    """Return how a series of losses fell from its first tenth to its last; None where it is too short to tell.

    The noise is two standard errors of the difference of the two means. How much a loss varies from step to step is
    taken from the median difference of neighbours: neither a steady fall nor a steep beginning is in it. What rounding
    may have done is noise too.
    """
    if len(losses) < MIN_STEPS:
        return None
    steps = max(MIN_STEPS // 2, len(losses) // SHARE)
    deviation = statistics.median(abs(after - before) for before, after in pairwise(losses)) / OF_NORMAL
    first, last = (sum(part) / steps for part in (losses[:steps], losses[-steps:]))
    noise = ERRORS * deviation * math.sqrt(2 / steps)
    return LossDrop(first, last, max(noise, ROUNDED * abs(first)), steps)
