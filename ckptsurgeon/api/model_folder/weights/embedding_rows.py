"""Reads the first numbers of some rows of an embedding, and measures how similar rows are."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from operator import mul
from statistics import median
from typing import TYPE_CHECKING

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WIDE", "Rows", "can_read"]

WIDTH, WIDE = 128, 384
"""The largest number of values of each row that are compared: ``WIDE`` in ``Rows.related``, else ``WIDTH``."""
CODES = {"float32": "f", "float16": "e", "bfloat16": "H"}
MOST, SOME = 16_384, 96
"""Close rows are searched among at most ``MOST`` rows, and for about ``SOME`` of these rows."""
EQUAL, CLOSE = 0.95, 1.15
"""Two rows with a cosine above ``EQUAL`` are copies. Rows are close if their cosine is above ``CLOSE`` times chance.

Chance is the expected largest value among as many normal random numbers with the standard deviation of the cosines. The
closest rows of all-MiniLM-L6-v2 reach 1.25 times this value among 8,192 rows, and 1.61 times among 30,000; those of
random rows reach 0.98 to 1.01 times.
"""


Pair = tuple[int, int]


def can_read(info: TensorInfo) -> bool:
    """Return whether ``Rows`` reads a tensor: little-endian float32, float16 or bfloat16."""
    return info.dtype in CODES and (info.storage is None or not info.storage.big_endian)


class Rows:
    """Reads the first values of an embedding's rows, and standardises them.

    From each value, the mean of its column is subtracted; the result is divided by the column's standard deviation.
    ``measure`` computes both; before it is called, values are not changed.
    """

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo, width: int = WIDTH) -> None:
        self._file = checkpoint.file(info)
        self._begin = (info.storage.offset if info.storage is not None else 0) + info.offset
        self._rows, self._size, self._width = info.shape[0], info.nbytes // info.shape[0], min(info.shape[1], width)
        self._code = f"<{self._width}{CODES[info.dtype]}"
        self._is_half = info.dtype == "bfloat16"
        self._means, self._scales = [0.0] * self._width, [1.0] * self._width
        self._known = dict[int, list[float]]()

    def measure(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Measure the mean and the standard deviation of each column over all rows in ``pairs``."""
        columns = list(zip(*(self._read(row) for pair in pairs for row in pair), strict=True))
        self._means = [math.fsum(column) / len(column) for column in columns]
        squares = [
            math.fsum((one - mean) ** 2 for one in column) for column, mean in zip(columns, self._means, strict=True)
        ]
        self._scales = [math.sqrt(len(column) / square) if square else 0.0
                        for column, square in zip(columns, squares, strict=True)]  # fmt: skip

    def cosine(self, pairs: Sequence[tuple[int, int]], shift: int) -> float:
        """Return the median, over all pairs (i, j), of the cosine between the rows i + ``shift`` and j + ``shift``."""
        return median(self._cosine(one + shift, two + shift) for one, two in pairs)

    def unrelated(self, pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Return (median cosine between rows that are not a pair, its standard error); (0, 0) if not finite.

        The first row of each pair is compared with the second row of the next pair.
        """
        found = [self._cosine(one, two) for (one, _), (_, two) in zip(pairs, (*pairs[1:], pairs[0]), strict=True)]
        mean = math.fsum(found) / len(found)
        error = math.sqrt(math.pi / 2 * math.fsum((one - mean) ** 2 for one in found)) / len(found)
        return (median(found), error) if math.isfinite(error) else (0.0, 0.0)

    def spread(self, pairs: Sequence[tuple[int, int]]) -> float:
        """Return how much the norms of the rows in ``pairs`` vary: about 1 for rows of normal random numbers.

        It is the relative standard deviation of the norms, divided by its expected value for such random rows.
        """
        norms = [math.hypot(*self._read(row)) for pair in pairs for row in pair]
        mean = math.fsum(norms) / len(norms)
        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in norms) / len(norms))
        return deviation / mean * math.sqrt(2 * self._width) if mean else 0.0

    def related(self, rows: int, pairs: Sequence[Pair]) -> tuple[float, list[Pair]] | None:
        """Return (median cosine between a row and its closest row, pairs of which both rows have a close row).

        Up to 16,384 of the first ``rows`` rows are read, and the rows of ``pairs``. Rows that are zeros, or have values
        that are not finite, are left out. Returns None if the median is not above chance (see ``CLOSE``), if fewer than
        ``SOME`` rows remain, or if no row of the pairs remains.
        """
        import numpy as np  # imported here, so that commands that only read headers do not load it

        count = min(rows, self._rows)
        chosen = sorted({*range(0, count, (count - 1) // MOST + 1), *(row for pair in pairs for row in pair)})
        values = np.stack([self._array(row) for row in chosen])
        is_usable = np.isfinite(values).all(axis=1) & values.any(axis=1)
        values, kept = values[is_usable], [row for row, usable in zip(chosen, is_usable, strict=True) if usable]
        if len(values) < SOME:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # squares of values above 1e19 overflow in float32
            deviations = values.std(axis=0)
        if not np.isfinite(deviations).all():
            return None
        values = (values - values.mean(axis=0)) / np.maximum(deviations, np.finfo(np.float32).tiny)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        nearest, deviation = _nearest(values, range(0, len(values), (len(values) - 1) // SOME + 1))
        double = math.sqrt(2 * math.log(len(values)))
        expected = double - math.log(4 * math.pi * math.log(len(values))) / (2 * double)
        least, median = CLOSE * expected * deviation, float(np.median(nearest))
        if not median > least:
            return None
        places = {row: place for place, row in enumerate(kept)}
        asked = [row for row in {row for pair in pairs for row in pair} if row in places]
        if not asked:
            return None
        close = _nearest(values, [places[row] for row in asked])[0] > least
        near = {row for row, is_close in zip(asked, close, strict=True) if is_close}
        return median, [pair for pair in pairs if near.issuperset(pair)]

    def _array(self, row: int) -> np.ndarray:
        import numpy as np

        data = self._bytes(row)
        if self._is_half:
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        return np.frombuffer(data, f"<{self._code[-1]}").astype(np.float32)

    def _cosine(self, one: int, two: int) -> float:
        return math.fsum(map(mul, self._unit(one), self._unit(two)))

    def _unit(self, row: int) -> list[float]:
        found = self._known.get(row)
        if found is None:
            scaled = list(
                map(mul, (x - mean for x, mean in zip(self._read(row), self._means, strict=True)), self._scales)
            )
            length = math.sqrt(math.fsum(map(mul, scaled, scaled)))
            found = self._known[row] = [x / length for x in scaled] if length else scaled
        return found

    def _read(self, row: int) -> Sequence[float]:
        numbers = struct.unpack(self._code, self._bytes(row))
        if self._is_half:
            numbers = struct.unpack(
                f"<{self._width}f", struct.pack(f"<{self._width}I", *(one << 16 for one in numbers))
            )
        return numbers

    def _bytes(self, row: int) -> bytes:
        return self._file.read(self._begin + row * self._size, struct.calcsize(self._code))


def _nearest(values: np.ndarray, places: Sequence[int]) -> tuple[np.ndarray, float]:
    """Return (largest cosine of each chosen row with any other row, standard deviation of all cosines).

    ``places`` are the indices of the chosen rows in ``values``. Rows that are copies of a chosen row are left out.
    """
    import numpy as np

    cosines = values[list(places)] @ values.T
    cosines[cosines > EQUAL] = np.nan
    return np.nanmax(cosines, axis=1, initial=-1.0), float(np.nanstd(cosines))
