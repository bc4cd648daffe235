"""Gives the values of chunked datasets as contiguous bytes: chunks are read, and their filters undone, when needed.

Values are unpacked band by band. A band is some rows of whole chunks; its values are contiguous in the dataset.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from threading import Lock
from typing import Any, NamedTuple

from ...errors import FormatError
from ...storage.read.base import File
from ...util.text import escape
from .checksums import fletcher32
from .chunk_arrays import StoredChunk
from .layouts import DEFLATE, FLETCHER, SHUFFLE, Filter

__all__ = ["BandCache", "ChunkedValues", "band_bytes"]

_BAND = 1 << 20
"""A band has at least about this many bytes: to put a band together takes as long as to copy thousands of bytes."""
_KEPT = 64 << 20
"""The most bytes of bands that are kept in memory until their last byte is read; two bands may have more bytes."""


class _Division(NamedTuple):
    """How a dataset is divided into bands: a band has at most ``length`` indices of the dimension ``dim``.

    It has a single index of each earlier dimension (chunks have the size 1 there), and all indices of each later one.
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
    """Return the size in bytes of the values of a band; the dataset must not be empty.

    ``shape`` and ``chunk`` are the shapes of the dataset and of a chunk, ``element`` is the bytes of an element.
    """
    if not shape:
        return element
    dim, length = _division(shape, chunk, element)
    return min(length, shape[dim]) * prod(shape[dim + 1 :]) * element


class BandCache:
    """The bands that were unpacked last, of all datasets of a file."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.kept: dict[tuple[int, int, int], bytes] = {}

    def add(self, key: tuple[int, int, int], band: bytes) -> None:
        """Keep a band; if there are too many bytes, drop the bands that were added first."""
        self.kept[key] = band
        while len(self.kept) > 2 and sum(map(len, self.kept.values())) > _KEPT:
            del self.kept[next(iter(self.kept))]


@dataclass
class ChunkedValues:
    """The values of one chunked dataset, which are read as if their bytes were contiguous.

    An element has ``element`` bytes; addresses in the file count from ``begin``. ``chunks`` has the stored chunks by
    their places in the grid; in all other chunks, each element is ``fill``, or zero if ``fill`` is empty. ``name`` is
    the path of the dataset, for messages.
    """

    file: File
    begin: int
    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    element: int
    chunks: Mapping[tuple[int, ...], StoredChunk]
    filters: Sequence[Filter]
    fill: bytes
    bands: BandCache = field(default_factory=BandCache)

    def __post_init__(self) -> None:
        self.nbytes = prod(self.shape) * self.element

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
            view[:length] = memoryview(band)[at : at + length]
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

    def _unpacked(self, division: _Division, outer: int, first: int) -> bytes:
        """Return the values of a band: its chunks put together, without elements outside the dataset.

        ``_place`` returns ``outer`` and ``first``.
        """
        import numpy as np

        dim, length = division
        sizes = (min(length, self.shape[dim] - first), *self.shape[dim + 1 :]) if self.shape else ()
        fill = np.frombuffer(self.fill or bytes(self.element), f"V{self.element}")
        band = np.full(sizes, fill[0])
        before = tuple(int(at) for at in np.unravel_index(outer, self.shape[:dim])) if dim else ()
        begins = [first, *(0 for _ in sizes[1:])][: len(sizes)]
        steps = self.chunk[dim:]
        ends = [-(-(begin + size) // step) for begin, size, step in zip(begins, sizes, steps, strict=True)]
        places = product(*(range(begin // step, end) for begin, step, end in zip(begins, steps, ends, strict=True)))
        stored = {place: chunk for place in places if (chunk := self.chunks.get((*before, *place))) is not None}
        self.file.need([(at := self.begin + chunk.address, at + chunk.size) for chunk in stored.values()])
        for place, chunk in stored.items():
            lows = [number * step - begin for number, step, begin in zip(place, steps, begins, strict=True)]
            target = band[tuple(slice(low, low + step) for low, step in zip(lows, steps, strict=True))]
            values = self._values((*before, *place), chunk)[(0,) * dim]
            target[...] = values[tuple(slice(size) for size in target.shape)]
        return band.tobytes()

    def _values(self, place: tuple[int, ...], stored: StoredChunk) -> Any:
        """Return the values of a chunk, as an array of elements."""
        import numpy as np

        data = self.file.read(self.begin + stored.address, stored.size)
        try:
            data = self._without_filters(data, stored.mask)
        except _DamagedError as error:
            raise FormatError(
                f"{escape(self.file.uri)}: the chunk {list(place)} of {escape(self.name)} {error}.", rule="hdf5 chunk"
            ) from None
        return np.frombuffer(data, f"V{self.element}").reshape(self.chunk)

    def _without_filters(self, data: bytes, mask: int) -> bytes:
        whole = prod(self.chunk) * self.element
        for number in reversed(range(len(self.filters) if mask >= 0 else 0)):
            one = self.filters[number]
            if mask >> number & 1:
                continue
            if one.number == FLETCHER:
                data = _without_checksum(data)
            elif one.number == DEFLATE:
                before = sum(other.number == FLETCHER for other in self.filters[:number])
                data = _inflated(data, whole + 4 * before)
            elif one.number == SHUFFLE:
                data = _unshuffled(data, one.width or self.element)
        if len(data) != whole:
            raise _DamagedError(f"has {len(data):,} bytes of values, not {whole:,}")
        return data


class _DamagedError(Exception):
    """Raised for a damaged chunk; the message says what is wrong, and is shown after the name of the chunk."""


def _without_checksum(data: bytes) -> bytes:
    stored = int.from_bytes(data[-4:], "little")
    if len(data) < 4 or stored != fletcher32(data[:-4]):
        raise _DamagedError("does not match its checksum")
    return data[:-4]


def _inflated(data: bytes, most: int) -> bytes:
    """Return the bytes that ``data`` unpacks to; raises _DamagedError if these are more than ``most``."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise _DamagedError(f"cannot be unpacked: {error}") from None
    if len(plain) > most or not inflater.eof:
        raise _DamagedError("does not unpack to its size")
    return plain


def _unshuffled(data: bytes, width: int) -> bytes:
    """Return the bytes of elements of ``width`` bytes, one element after another.

    ``data`` has the first bytes of all elements, then all second bytes, and so on.
    """
    import numpy as np

    number = len(data) // width
    if width < 2 or number < 2:
        return data
    whole = number * width
    plain = np.frombuffer(data[:whole], "u1").reshape(width, number).T.tobytes()
    return plain + data[whole:]
