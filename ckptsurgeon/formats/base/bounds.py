"""Checks that several readers share: sizes that are sizes, copying that comes to an end."""

from __future__ import annotations

from math import prod
from typing import Any

from ...errors import FormatError, UnsafeError
from . import limits

__all__ = ["Budget", "check_elements", "check_sizes", "growth", "most_segments"]


def growth(stored: int) -> float:
    """Return how many times more instructions a pickle may have for the bytes of the file that it takes."""
    return min(max(stored / limits.PICKLE_FREE, 1), limits.PICKLE_GROWTH)


def most_segments(keys: int) -> int:
    """Return how many dotted parts so many keys may have together."""
    return max(limits.SEGMENTS, limits.SEGMENTS_EACH * keys)


class Budget:
    """What the rebuilding functions of one pickle may copy between them, in elements."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = limits.PICKLE_COPIES

    def spend(self, elements: int) -> None:
        """Take from what is left; raises UnsafeError when it was not enough."""
        self.left -= elements
        if self.left < 0:
            raise UnsafeError("the pickle copies the same values over and over.", rule="pickle copies")


def check_sizes(values: Any, what: str) -> None:
    """Refuse what is no tuple of sizes; ``what`` names it ("size", "stride")."""
    if type(values) is not tuple or len(values) > limits.DIMENSIONS:
        raise FormatError(
            f"a tensor's {what} is no tuple of at most {limits.DIMENSIONS} numbers.", rule=f"tensor {what}"
        )
    for value in values:
        if type(value) is not int or value < 0 or value > limits.ELEMENTS:
            raise FormatError(f"a tensor's {what} holds what is no size.", rule=f"tensor {what}")


def check_elements(shape: tuple[int, ...]) -> None:
    """Refuse a shape of more elements than an int64 counts, a size of 0 left aside."""
    if prod(size for size in shape if size) > limits.ELEMENTS:
        raise FormatError(f"a tensor of shape {shape} has too many elements.", rule="tensor size")
