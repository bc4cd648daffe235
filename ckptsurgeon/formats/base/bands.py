"""Reads arrays that are stored in chunks as if their bytes were contiguous, band by band.

A band is some rows of whole chunks: its values are contiguous in the array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from threading import Lock
from typing import Any, NamedTuple

__all__ = ["BandCache", "BandedValues", "band_bytes"]

_BAND = 1 << 20
"""A band has at least about this many bytes: to put a band together takes as long as to copy thousands of bytes."""
_KEPT = 64 << 20
"""The most bytes of all bands that are kept in memory; the two newest bands are kept even if they have more bytes."""
_Place = tuple[int, ...]


class _Division(NamedTuple):
    """How an array is divided into bands: a band has at most ``length`` indices of the dimension ``dim``.

    It has a single index of each earlier dimension (chunks have the size 1 there), and all indices of each later
    dimension.
    """

    dim: int
    length: int


def _division(shape: Sequence[int], chunk: Sequence[int], element: int) -> _Division:
    first = next((dim for dim, step in enumerate(chunk) if min(step, shape[dim]) > 1), len(chunk) - 1)
    for dim in range(first + 1):
        row = chunk[dim] * prod(shape[dim + 1 :]) * element
        if row <= _BAND:
            return _Division(dim, chunk[dim] * (_BAND // row))
    return _Division(first, chunk[first])


def band_bytes(shape: Sequence[int], chunk: Sequence[int], element: int) -> int:
    """Return the size in bytes of the values of a band; the array must not be empty.

    ``shape`` and ``chunk`` are the shapes of the array and of a chunk, ``element`` is the bytes of an element.
    """
    if not shape:
        return element
    dim, length = _division(shape, chunk, element)
    return min(length, shape[dim]) * prod(shape[dim + 1 :]) * element


class BandCache:
    """A cache of the bands that were unpacked last. All arrays of a checkpoint share it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.kept: dict[tuple[int, int, int], memoryview] = {}

    def add(self, key: tuple[int, int, int], band: memoryview) -> None:
        """Add a band to the cache; if the bands then have too many bytes, drop the bands that were added first."""
        self.kept[key] = band
        while len(self.kept) > 2 and sum(map(len, self.kept.values())) > _KEPT:
            del self.kept[next(iter(self.kept))]


@dataclass(kw_only=True)
class BandedValues(ABC):
    """An array in chunks, which is read as if its bytes were contiguous.

    An element has ``element`` bytes. In a chunk that is not stored each element is ``fill``, or zero if ``fill`` is
    empty. ``name`` is the name of the array, for messages.
    """

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    element: int
    fill: bytes = b""
    bands: BandCache = field(default_factory=BandCache)

    def __post_init__(self) -> None:
        self.nbytes = prod(self.shape) * self.element

    @abstractmethod
    def stored(self, places: Collection[_Place]) -> Collection[_Place]:
        """Return those of ``places`` at which a chunk may be stored; only these chunks are then read, by ``values``.

        A place has the indices of a chunk in the grid of chunks.
        """

    @abstractmethod
    def values(self, place: _Place) -> Any:
        """Return the values of the chunk at ``place``: an array of elements (``V4``) with the shape of a chunk.

        Returns None if the chunk is not stored. Raises FormatError if it is damaged.
        """

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; raises FormatError if a chunk is damaged."""
        division = _division(self.shape, self.chunk, self.element) if self.shape else _Division(0, 1)
        while len(view):
            place, at = self._place(division, offset)
            key = (id(self), *place)
            with self.bands.lock:
                if key not in self.bands.kept:
                    self.bands.add(key, self._unpacked(division, *place))
                band = self.bands.kept[key]
                length = min(len(view), len(band) - at)
                if at + length == len(band):  # values are read from front to back
                    del self.bands.kept[key]
            view[:length] = band[at : at + length]
            offset, view = offset + length, view[length:]

    def _place(self, division: _Division, offset: int) -> tuple[tuple[int, int], int]:
        """Return the band that has the byte at ``offset``, and the position of the byte in the band.

        The band is given as (position in the flattened dimensions before ``division.dim``, first index in
        ``division.dim``).
        """
        if not self.shape:
            return (0, 0), offset
        row = prod(self.shape[division.dim + 1 :]) * self.element
        outer, rest = divmod(offset, self.shape[division.dim] * row)
        first = rest // row // division.length * division.length
        return (outer, first), rest - first * row

    def _unpacked(self, division: _Division, outer: int, first: int) -> memoryview:
        """Return the bytes of a band: its chunks put together, without elements outside the array.

        ``_place`` returns ``outer`` and ``first``.
        """
        import numpy as np

        dim, length = division
        sizes = (min(length, self.shape[dim] - first), *self.shape[dim + 1 :]) if self.shape else ()
        before = tuple(int(at) for at in np.unravel_index(outer, self.shape[:dim])) if dim else ()
        begins = [first, *(0 for _ in sizes[1:])][: len(sizes)]
        steps = self.chunk[dim:]
        ends = [-(-(begin + size) // step) for begin, size, step in zip(begins, sizes, steps, strict=True)]
        places = [range(begin // step, end) for begin, step, end in zip(begins, steps, ends, strict=True)]
        band = self._joined([(*before, *place) for place in product(*places)], begins, sizes)
        return memoryview(np.ascontiguousarray(band).reshape(-1).view("u1").data)

    def _joined(self, places: Sequence[_Place], begins: Sequence[int], sizes: Sequence[int]) -> Any:
        """Return the elements of a band as an array; its chunks are at ``places`` in the grid of chunks.

        ``begins`` has the first index of the band in each of its dimensions, ``sizes`` its shape.
        """
        dim = len(self.shape) - len(sizes)
        steps, band = self.chunk[dim:], None
        for place in self.stored(places):
            values = self.values(place)
            if values is None:
                continue
            values = values[(*(0,) * dim, ...)]
            if len(places) == 1 and values.shape == sizes:
                return values  # one chunk is the whole band: no copy
            if band is None:
                band = self._filled(sizes)
            lows = [number * step - begin for number, step, begin in zip(place[dim:], steps, begins, strict=True)]
            within: Any = [slice(low, low + step) for low, step in zip(lows, steps, strict=True)]
            target = band[(*within, ...)]  # a view, also of an array without dimensions
            target[...] = values[(*(slice(size) for size in target.shape), ...)]
        return self._filled(sizes) if band is None else band

    def _filled(self, sizes: Sequence[int]) -> Any:
        import numpy as np

        return np.full(sizes, np.frombuffer(self.fill or bytes(self.element), f"V{self.element}")[0])
