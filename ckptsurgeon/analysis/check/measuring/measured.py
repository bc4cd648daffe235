"""What one pass over the values says of a tensor: figures, a checksum of its bytes, and the rows of an embedding."""

from __future__ import annotations

from dataclasses import dataclass

from ....tensors.ops.regions import Array
from .figures import Figures

__all__ = ["Measured", "Rows"]


@dataclass(frozen=True)
class Rows:
    """The sum of the squares of each row of a matrix, in double precision, and which rows have the bytes of another."""

    squares: Array
    alike: Array


@dataclass(frozen=True)
class Measured:
    """The figures of a tensor's values, and the CRC-32 of its bytes.

    ``figures`` is None if the values are not numbers. ``digest`` is a BLAKE2b of the bytes, only for a tensor that has
    the size and the CRC-32 of another; else ''. ``is_of_scales`` is true for a tensor in blocks of codes, whose figures
    are those of the blocks' scales.
    """

    figures: Figures | None
    crc32: int
    nbytes: int
    digest: str = ""
    rows: Rows | None = None
    is_of_scales: bool = False
