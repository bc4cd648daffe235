"""Reads chunked datasets as if their bytes were contiguous; chunks are read and unpacked when they are needed."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import FormatError
from ...storage.read.base import File
from ...util.text import escape
from ..base.bands import BandedValues
from .checksums import fletcher32
from .chunk_arrays import StoredChunk
from .layouts import DEFLATE, FLETCHER, SHUFFLE, Filter

__all__ = ["ChunkedValues"]


@dataclass(kw_only=True)
class ChunkedValues(BandedValues):
    """A chunked dataset, which is read as if its bytes were contiguous.

    Addresses in the file count from ``begin``. ``chunks`` is {place in the grid of chunks: stored chunk}.
    """

    file: File
    begin: int
    chunks: Mapping[tuple[int, ...], StoredChunk]
    filters: Sequence[Filter]

    def stored(self, places: Collection[tuple[int, ...]]) -> Collection[tuple[int, ...]]:
        """Return those of ``places`` at which a chunk is stored, and announce that these chunks will be read."""
        found = {place: chunk for place in places if (chunk := self.chunks.get(place)) is not None}
        self.file.need([(at := self.begin + chunk.address, at + chunk.size) for chunk in found.values()])
        return list(found)

    def values(self, place: tuple[int, ...]) -> Any:
        """Return the values of a stored chunk, as an array of elements; raises FormatError if it is damaged."""
        import numpy as np

        stored = self.chunks[place]
        data = self.file.read(self.begin + stored.address, stored.size)
        try:
            data = self._without_filters(data, stored.mask)
        except _DamagedError as error:
            raise FormatError(
                f"{escape(self.file.uri)}: the chunk {list(place)} of {escape(self.name)} is damaged: {error}.",
                rule="hdf5 chunk",
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
            raise _DamagedError(f"the chunk has {len(data):,} bytes of values, not {whole:,}")
        return data


class _DamagedError(Exception):
    """Raised for a damaged chunk; the message is a text that follows "the chunk is damaged: "."""


def _without_checksum(data: bytes) -> bytes:
    stored = int.from_bytes(data[-4:], "little")
    if len(data) < 4 or stored != fletcher32(data[:-4]):
        raise _DamagedError("the data do not match the checksum")
    return data[:-4]


def _inflated(data: bytes, most: int) -> bytes:
    """Return the bytes to which ``data`` unpacks.

    Raises _DamagedError if there are more than ``most``, or if zlib cannot unpack ``data`` to its end.
    """
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise _DamagedError(f"the chunk cannot be unpacked: {error}") from None
    if len(plain) > most or not inflater.eof:
        raise _DamagedError("the chunk does not unpack to the size of its values")
    return plain


def _unshuffled(data: bytes, width: int) -> bytes:
    """Undo the shuffle filter: return elements of ``width`` bytes, one after another.

    ``data`` has the first bytes of all elements, then all second bytes, and so on.
    """
    import numpy as np

    number = len(data) // width
    if width < 2 or number < 2:
        return data
    whole = number * width
    plain = np.frombuffer(data[:whole], "u1").reshape(width, number).T.tobytes()
    return plain + data[whole:]
