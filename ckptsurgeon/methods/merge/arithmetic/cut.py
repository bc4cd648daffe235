"""Where the largest or smallest magnitudes of a tensor end: which of its values are in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....tensors.ops.boxes import Array
from .._method import Slice
from .pieces import on_host

__all__ = ["Cut", "Rank", "trivial"]


@dataclass(frozen=True)
class Rank:
    """The ``count`` largest or smallest magnitudes of a quantity; of equal ones, those that come first."""

    quantity: int
    count: int
    largest: bool = True


@dataclass(frozen=True)
class Cut:
    """Where the magnitudes of a rank end.

    Those that equal ``value`` are in where they lie in a piece before ``place``, or are among the first ``quota`` of
    the piece there. (The pieces that are merged are those that were counted.) A NaN counts as larger than any number;
    which of them are in makes no difference, since one that is multiplied by zero stays one.
    """

    value: float
    largest: bool
    place: float = math.inf
    quota: int = 0

    def holds(self, at: Slice, magnitudes: Array) -> Array:
        """Return which magnitudes of a piece are in."""
        if at.offset < self.place:
            return self._reaches(magnitudes)
        mask: Array = magnitudes > self.value if self.largest else magnitudes < self.value
        if at.offset == self.place:
            equal = np.flatnonzero(on_host(magnitudes == self.value))
            end = int(equal[self.quota - 1]) + 1
            mask[:end] = self._reaches(magnitudes[:end])
        return mask

    def _reaches(self, magnitudes: Array) -> Array:
        if not self.largest:
            return ~(magnitudes > self.value)  # where that is no number, all are in
        mask: Array = magnitudes >= self.value
        return mask


def trivial(rank: Rank) -> Cut:
    """Return the cut that holds all, or none."""
    none = math.inf if rank.largest else -math.inf
    return Cut(none, rank.largest, -1) if rank.count <= 0 else Cut(-none, rank.largest)
