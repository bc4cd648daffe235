"""The results of one pass over a tensor's values: figures, a checksum of its bytes, and the rows of an embedding."""

from __future__ import annotations

from dataclasses import dataclass

from ....tensors.ops.regions import Array
from .figures import Figures
from .repeats import Repeat

__all__ = ["Measured", "Rows"]


@dataclass(frozen=True)
class Rows:
    """The sum of squares of each row of a matrix, in double precision, and a mask of rows that equal another row."""

    squares: Array
    alike: Array


@dataclass(frozen=True)
class Measured:
    """The figures (counts, extremes, sums) of a tensor's values, and the CRC-32 of its bytes.

    ``figures`` is None if the values are not numbers. ``digest`` is the BLAKE2b digest of the bytes if another tensor
    has the same size and CRC-32; else ''. ``is_of_scales`` is true for a tensor of GGUF codes: its figures are the
    figures of the scales in its blocks. ``dtype`` is the dtype of the measured numbers: scales that are stored as uint8
    are measured as the numbers that they encode. ``repeats`` are ranges of bytes that begin in this tensor and repeat
    earlier bytes of the file.
    """

    figures: Figures | None
    crc32: int
    nbytes: int
    digest: str = ""
    rows: Rows | None = None
    is_of_scales: bool = False
    dtype: str = ""
    repeats: tuple[Repeat, ...] = ()
