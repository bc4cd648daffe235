"""Reads narrow strips of columns of stored matrices from wider bands of columns, which are cached for the next strips.

GPTQ and AWQ store codes with the inputs of a layer as rows. So the codes of a few rows of a weight are a strip of
columns: in the file, these are a few bytes at each of thousands of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from ...storage.read.base import File
from ...tensors.composition import is_decoded
from ...tensors.info import TensorInfo
from ...tensors.ops.regions import Array, Box, box_shape

if TYPE_CHECKING:
    from ...tensors.odd_scales.notes import OddScales

__all__ = ["BandedFiles", "OpenFiles", "banded"]

BAND_BYTES = 1 << 20
"""The size in bytes of a band, that is, of a range of columns that is read from a matrix at once."""
KEPT = 2
"""How many bands of each matrix are cached: threads that compute adjacent blocks need the same band or the next."""
WIDE = 4
"""A strip of columns is read from a cached band if the matrix is more than this many times as wide as the strip."""


class OpenFiles(Protocol):
    """The part of a checkpoint's interface that is needed to read stored tensors."""

    @property
    def odd_scales(self) -> OddScales:
        """Quantised tensors with suspicious scales, such as 0."""
        ...

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        ...


class BandedFiles:
    """The open files of a checkpoint, with a cache of bands for computing one tensor; several threads may read."""

    def __init__(self, source: OpenFiles) -> None:
        self._source = source
        self._kept: dict[tuple[int, tuple[int, int]], dict[int, Array]] = {}
        self._lock = Lock()

    @property
    def odd_scales(self) -> OddScales:
        """Quantised tensors with suspicious scales."""
        return self._source.odd_scales

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        return self._source.file(info)

    def read(self, info: TensorInfo, box: Box, gather: Callable[[Box], Array]) -> Array:
        """Return the part ``box`` of a stored tensor, if possible from a cached band (a range of columns).

        ``gather`` is a function that reads a part of the tensor from the file.
        """
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
    """Return ``source``, with a cache for columns of its matrices if the tensor ``info`` is decoded from codes."""
    return BandedFiles(source) if is_decoded(info) else source


def _is_strip(info: TensorInfo, box: Box) -> bool:
    """Return whether ``box`` is a strip of columns of a contiguous matrix that is much narrower than the matrix."""
    if len(info.shape) != 2 or info.stride is not None or not prod(box_shape(box)):
        return False
    (top, bottom), (begin, end) = box
    return bottom - top > 1 and info.shape[1] > WIDE * (end - begin)
