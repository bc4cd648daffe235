"""Reads strips of a few columns of stored matrices from wider bands of columns, which are kept for the next strips.

Codes of GPTQ and AWQ are packed along the inputs of a layer, so that the codes of a few rows of a weight are a strip of
columns: a few bytes in each of thousands of places of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from threading import Lock
from typing import Protocol

from ...storage.read.base import File
from ...tensors.composition import is_decoded
from ...tensors.info import TensorInfo
from ...tensors.odd_scales import OddScales
from ...tensors.ops.regions import Array, Box, box_shape

__all__ = ["BandedFiles", "OpenFiles", "banded"]

BAND_BYTES = 1 << 20
"""The bytes of a band."""
KEPT = 2
"""The bands that are kept of each matrix: threads that compute neighbouring blocks read from one or from the next."""
WIDE = 4
"""A strip is read from a band if the rows that it crosses have more than this many times its bytes."""


class OpenFiles(Protocol):
    """What is needed of a checkpoint to read a stored tensor, and to note what is odd about its scales."""

    odd_scales: OddScales

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        ...


class BandedFiles:
    """The open files of a checkpoint while one tensor is computed, with the bands that were read last.

    Several threads may read.
    """

    def __init__(self, source: OpenFiles) -> None:
        self._source, self.odd_scales = source, source.odd_scales
        self._kept: dict[tuple[int, tuple[int, int]], dict[int, Array]] = {}
        self._lock = Lock()

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        return self._source.file(info)

    def read(self, info: TensorInfo, box: Box, gather: Callable[[Box], Array]) -> Array:
        """Return a part of a stored tensor; ``gather`` reads a part from the file."""
        if not _is_strip(info, box):
            return gather(box)
        rows, (begin, end) = box
        width = max(1, BAND_BYTES // ((rows[1] - rows[0]) * info.itemsize))
        first = begin // width
        if end > (first + 1) * width:
            return gather(box)
        band = self._band(info, rows, first, width, gather)
        return band[:, begin - first * width : end - first * width]

    def _band(
        self, info: TensorInfo, rows: tuple[int, int], number: int, width: int, gather: Callable[[Box], Array]
    ) -> Array:
        with self._lock:
            kept = self._kept.setdefault((id(info), rows), {})
            if number not in kept:
                if len(kept) == KEPT:
                    del kept[min(kept)]
                kept[number] = gather((rows, (number * width, min((number + 1) * width, info.shape[1]))))
                kept[number].flags.writeable = False
            return kept[number]


def banded(info: TensorInfo, source: OpenFiles) -> OpenFiles:
    """Return the open files for computing with a tensor: those that keep bands if it is decoded from codes."""
    return BandedFiles(source) if is_decoded(info) else source


def _is_strip(info: TensorInfo, box: Box) -> bool:
    """Return whether a part of a tensor is a strip of columns of a contiguous matrix, much narrower than the matrix."""
    if len(info.shape) != 2 or info.stride is not None or not prod(box_shape(box)):
        return False
    (top, bottom), (begin, end) = box
    return bottom - top > 1 and info.shape[1] > WIDE * (end - begin)
