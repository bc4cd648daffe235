"""Matches the channels of one expert to those of another of the same layer, by comparing their weights.

The order is the one with the largest sum of inner products, as in Git Re-Basin (https://arxiv.org/abs/2209.04836). One
assignment finds it, because an expert has no other axes that may be reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError
from ...planning.aligning.groups import Order, Part
from ...tensors.composition import cut, reshape
from ...tensors.info import TensorInfo
from ...util.text import escape, human_bytes
from .assignment import assignment, solver, value_of
from .matching import GAIN
from .similarity import TensorPair, add_products, dot_products

__all__ = ["MatchedExpert", "match_expert"]


@dataclass(frozen=True)
class MatchedExpert:
    """The order of an expert's channels in which it is most similar to another expert.

    ``order`` has, for each new position, the old index of the channel that moves there. ``before`` and ``after`` are
    the cosines between the weights of both experts, before and after this reordering.
    """

    order: Order
    before: float
    after: float

    @property
    def moved(self) -> int:
        """How many channels have a new position."""
        return sum(place != channel for place, channel in enumerate(self.order))


def match_expert(
    source: Checkpoint, parts: Sequence[Part], channels: int, first: int, second: int, memory: int
) -> MatchedExpert:
    """Return the order of the channels of the expert ``second`` in which it is most similar to the expert ``first``.

    ``parts`` describe the axes of tensors that count the ``channels``; dimension 0 of these tensors counts the experts.
    Raises PlanError for NaN and infinite values, and if the similarities do not fit into ``memory`` bytes; ConfigError
    if scipy is not installed.
    """
    _check_memory(parts[0].keys[0], channels, memory)
    solver()  # before anything is read
    products = np.zeros((channels, channels))
    left = max(0, memory - products.nbytes)
    for part in parts:
        pair = _pair(source, part.keys[0], first, second)
        add_products(products, pair, part.dim - 1, part.begin, part.block, left)
    sums = np.sum([dot_products(_pair(source, key, first, second), left) for key in _keys(parts)], axis=0)
    size = float(sums[1] * sums[2]) ** 0.5 or 1.0
    order, same = assignment(products), np.arange(channels)
    old, new = value_of(products, same), value_of(products, order)
    if new - old <= GAIN * max(abs(new), abs(old)):
        order, new = same, old
    return MatchedExpert([int(channel) for channel in order], old / size, new / size)


def _check_memory(key: str, channels: int, memory: int) -> None:
    """Raise PlanError if the matrix of similarities, of which no copy is made, takes more than ``memory`` bytes."""
    needed = 8 * channels**2
    if needed > memory:
        raise PlanError(
            f"the similarities of {channels} channels of each expert ({escape(key)}) take {human_bytes(needed)} of "
            f"memory, more than {human_bytes(memory)}.",
            hint="Leave --align-experts out.",
        )


def _keys(parts: Sequence[Part]) -> list[str]:
    return list(dict.fromkeys(part.keys[0] for part in parts))


def _pair(source: Checkpoint, key: str, first: int, second: int) -> TensorPair:
    info = source[key]
    return TensorPair(source, _of_expert(info, first), source, _of_expert(info, second), key)


def _of_expert(info: TensorInfo, expert: int) -> TensorInfo:
    return reshape(cut(info, 0, expert, 1), info.shape[1:])
