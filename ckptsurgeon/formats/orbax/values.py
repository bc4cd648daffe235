"""Reads zarr arrays as if their bytes were contiguous; chunks are read and unpacked when they are needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from ...errors import FormatError
from ...util.text import escape
from ..base.bands import BandedValues
from .codecs import without_checksum, without_codecs
from .stores import ChunkStore
from .zarr import Shards, ZarrArray

__all__ = ["ZarrValues"]

_ABSENT = 0xFFFFFFFFFFFFFFFF
"""The offset and the size, in the index of a chunk, of an inner chunk that is not stored."""
_Place = tuple[int, ...]


@dataclass(kw_only=True)
class ZarrValues(BandedValues):
    """A zarr array, whose chunks are in ``store`` under keys that begin with ``prefix``.

    ``path`` is the path of the checkpoint, for messages. If ``is_complete`` is true, every chunk has to be stored, even
    a chunk of zeros.
    """

    array: ZarrArray
    store: ChunkStore
    prefix: str
    path: str
    is_complete: bool

    def stored(self, places: Collection[_Place]) -> Collection[_Place]:
        """Return all ``places``: whether a chunk is stored is known only when it is read."""
        return places

    def values(self, place: _Place) -> Any:
        """Return the values of a chunk; None if it is not stored. Raises FormatError if it is missing or damaged."""
        try:
            data = self.store.read(f"{self.prefix}{self.array.key_of(place)}")
            if data is not None:
                return self._unpacked_chunk(data)
            if self.is_complete or self.array.fill is None:
                raise FormatError("it is missing.", rule="zarr chunk")
            return None
        except FormatError as error:
            raise type(error)(
                f"{escape(self.path)}: the chunk {list(place)} of {escape(self.name)} cannot be read: {error.message}",
                hint=error.hint,
                rule=error.rule,
            ) from None

    def _unpacked_chunk(self, data: bytes) -> Any:
        import numpy as np

        if self.array.shards is not None:
            return self._of_shards(data, self.array.shards)
        plain = without_codecs(data, self.array.codecs, self.array.chunk_bytes)
        return np.frombuffer(plain, f"V{self.element}").reshape(self.chunk, order=_order(self.array.order))

    def _of_shards(self, data: bytes, shards: Shards) -> Any:
        """Return the values of a chunk that consists of inner chunks, put together.

        Raises FormatError if an inner chunk is damaged.
        """
        import numpy as np

        counts = [size // step for size, step in zip(self.chunk, shards.chunk, strict=True)]
        index = _index(data, prod(counts), shards)
        whole = np.full(self.chunk, np.frombuffer(self.fill or bytes(self.element), f"V{self.element}")[0])
        for place, (begin, size) in zip(product(*map(range, counts)), index, strict=True):
            if begin == size == _ABSENT:
                if self.is_complete or self.array.fill is None:
                    raise FormatError("a part of the chunk is missing.", rule="zarr chunk")
                continue
            if begin + size > len(data):
                raise FormatError("a part of the chunk is beyond its end.", rule="zarr chunk")
            plain = without_codecs(
                memoryview(data)[begin : begin + size], shards.codecs, prod(shards.chunk) * self.element
            )
            lows = [at * step for at, step in zip(place, shards.chunk, strict=True)]
            target = tuple(slice(low, low + step) for low, step in zip(lows, shards.chunk, strict=True))
            whole[target] = np.frombuffer(plain, f"V{self.element}").reshape(shards.chunk)
        return whole


def _order(name: str) -> Any:
    return name


def _index(data: bytes, number: int, shards: Shards) -> list[tuple[int, int]]:
    """Return (offset, size) of each inner chunk, from the index in ``data``; raises FormatError if it is damaged."""
    length = 16 * number + 4 * shards.has_sum
    if len(data) < length:
        raise FormatError("the chunk is shorter than the index of its parts.", rule="zarr chunk")
    stored = memoryview(data)[len(data) - length :] if shards.at_end else memoryview(data)[:length]
    plain = bytes(without_checksum(stored) if shards.has_sum else stored)
    numbers = [int.from_bytes(plain[at : at + 8], "little") for at in range(0, len(plain), 8)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
