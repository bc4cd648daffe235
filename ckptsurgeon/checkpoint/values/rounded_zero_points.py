"""Finds packed zero points that were cast to floats and back: a float has too few bits for a word of codes.

``zero_points.py`` finds such words if the zero points are symmetric (all equal). Here, they may have any values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from .row_pieces import first_and_last_rows
from .zero_points import TENSORS, Read

__all__ = ["rounded_zero_points"]

PARTS = (".qzeros", ".weight_zero_point")
MOST = 4096
"""About the most bytes of zero points of a tensor that are read."""
FEWEST, SAMPLED = 16, 256
"""The fewest words of a tensor that show that they were rounded, and about how many words are looked at."""
ROUNDED = 1 << 27
"""From this size, float32 keeps only multiples of 16, so that the lowest 4 bits of a word are 0."""
ALL, SOME = 0.99, 0.5
"""Words were rounded if at least ``ALL`` of them have 0 in their lowest 4 bits, which rounding sets to 0.

Rounding keeps the two highest groups of 4 bits: less than ``SOME`` of the words may have 0 in either of them.
"""
SAID = (
    "packed {} whose lowest code is nearly always 0, unlike their other codes: were the packed words cast to a "
    "floating-point dtype and back?"
)


def rounded_zero_points(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each tensor whose packed zero points look like rounded integers.

    The text says what the weight has, to follow "has" in a note. ``read`` returns the bytes of a tensor.
    """
    every = [(one, part) for one in codes.tensors for part in PARTS if part in one.parts]
    for one, part in every[:: len(every) // TENSORS + 1]:
        zeros = tensors[one.parts[part]]
        if zeros.is_plain and zeros.dtype in ("int32", "uint32") and len(zeros.shape) > 1:
            data = b"".join(map(read, first_and_last_rows(zeros, MOST)))
            if _are_rounded([int.from_bytes(data[at : at + 4], "little") for at in _places(len(data))]):
                yield one.name, SAID.format(part[1:])


def _places(size: int) -> range:
    """Return the offsets of some words, evenly spread over ``size`` bytes."""
    return range(0, size // 4 * 4, 4 * (size // 4 // SAMPLED + 1))


def _are_rounded(words: list[int]) -> bool:
    some = [word for word in words if ROUNDED <= word <= (1 << 32) - ROUNDED]
    if len(some) < FEWEST or sum(word & 15 == 0 for word in some) < ALL * len(some):
        return False
    return all(sum(word >> at & 15 == 0 for word in some) < SOME * len(some) for at in (24, 28))
