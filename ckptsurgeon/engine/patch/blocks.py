"""Encodes a block of a tensor's bytes as its difference from another block, and decodes it.

There are two ways. The elements of both blocks are combined by XOR, bit for bit; or the changes are approximated: by
the sign of each element's change and one scale for all changes (BitDelta, https://arxiv.org/abs/2402.10193), or by the
product of two low-rank factors. For a product, the encoded block has rows of the left factor; the right factor is a
block of its own.

With XOR, if few elements differ, only these are stored, with a bitmap of their positions. The stored elements are split
into planes: the first bytes of all elements, then all second bytes, and so on. Planes compress better, since signs and
exponents change less than mantissas. The bitmap and each plane are streams. A stream is compressed with Zstandard (RFC
8878), unless this does not make it smaller.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, FormatError
from ...tensors.ops.casts import cast, raw_dtype, widened
from ...tensors.ops.regions import Array
from .low_rank import RightFactor, add_product, rows_of

__all__ = ["BLOCK", "Bytes", "Decoder", "Encoder", "zstandard"]

Bytes = npt.NDArray[np.uint8]

BLOCK = 4 << 20
"""How many bytes a block has before it is encoded."""
DENSE = 4
"""If at most one in ``DENSE`` elements differs, a bitmap and these elements are stored; otherwise all elements."""
WORTH = 0.98
"""A stream is compressed only if its compressed size is below this fraction of its size."""
_LENGTH = struct.Struct("<I")
_PLAIN = 1 << 31
"""The bit that is set in the stored length of a stream that is not compressed."""
_SIZES = (1, 2, 4, 8)
"""The possible sizes of an element in bytes."""
ALL, SOME, SIGNS, LOW_RANK = range(4)
"""The first byte of an encoded block: XOR of all elements, of some elements, signs and a scale, or rows of a factor."""
FLOATS = ("bfloat16", "float16", "float32")
"""The dtypes of elements whose changes may be approximated; the second byte of such a block is an index here."""


def zstandard() -> Any:
    """Return the module of the package zstandard; raises ConfigError if it is not installed."""
    try:
        import zstandard as library
    except ImportError as error:
        raise ConfigError(
            "patches need the package zstandard.", hint="Run pip install 'ckptsurgeon[patch]'."
        ) from error
    return library


class Encoder:
    """Encodes blocks; each thread needs its own encoder.

    ``level`` is the compression level of Zstandard, from 1 (fast) to 19 (small).
    """

    def __init__(self, level: int = 1) -> None:
        self._compress = zstandard().ZstdCompressor(level=level).compress

    def encode(self, new: Bytes, old: Bytes | None, itemsize: int) -> bytes:
        """Return the encoded difference between the blocks ``new`` and ``old``; empty if they are equal.

        ``old`` has as many bytes as ``new``. If ``old`` is None, ``new`` itself is encoded. An element has
        ``itemsize`` bytes.
        """
        size = next(one for one in _SIZES[::-1] if itemsize % one == 0 and new.size % one == 0)
        values = new.view(f"<u{size}")
        if old is None:
            return self._streams(ALL, size, [*_planes(values, size)])
        changed = np.bitwise_xor(values, old.view(f"<u{size}"))
        which = changed != 0
        number = int(np.count_nonzero(which))
        if not number:
            return b""
        if number * DENSE > changed.size:
            return self._streams(ALL, size, [*_planes(changed, size)])
        return self._streams(SOME, size, [np.packbits(which), *_planes(changed[which], size)])

    def encode_signs(self, new: Bytes, old: Bytes, dtype: str) -> bytes:
        """Return an encoded block with the sign of each change from ``old`` to ``new``, and one scale for all changes.

        The blocks have elements of ``dtype``. The scale is the mean magnitude of the changes, which gives the least
        squared error. The result is empty if all elements are equal, or if a change is not finite.
        """
        before, after = (widened(one.view(raw_dtype(dtype)), dtype) for one in (old, new))
        with np.errstate(all="ignore"):
            changes = after - before
            scale = np.array([np.abs(changes).mean(dtype="<f8")], "<f4")
        if not np.isfinite(scale[0]) or not scale[0]:
            return b""
        return self._streams(SIGNS, FLOATS.index(dtype), [scale.view(np.uint8), np.packbits(changes > 0)])

    def encode_factor(self, left: Array, dtype: str) -> bytes:
        """Return an encoded block: the rows of the left factor, as float32, that the block's elements need.

        ``dtype`` is the dtype of the elements. A row of the matrix may lie in two blocks: both get this row.
        """
        return self._streams(LOW_RANK, FLOATS.index(dtype), [*_planes(np.ascontiguousarray(left).reshape(-1), 4)])

    def _streams(self, form: int, size: int, streams: Sequence[Bytes]) -> bytes:
        found = [bytes((form, size))]
        for stream in streams:
            data = self._compress(stream.data) if stream.size else b""
            plain = len(data) >= WORTH * stream.size
            found.append(_LENGTH.pack(stream.size | _PLAIN if plain else len(data)))
            found.append(stream.tobytes() if plain else data)
        return b"".join(found)


class Decoder:
    """Decodes blocks; a damaged block, as may be in any file, raises FormatError. Each thread needs its own decoder."""

    def __init__(self) -> None:
        library = zstandard()
        self._decompress, self._error = library.ZstdDecompressor().decompress, library.ZstdError
        self._size_of = library.frame_content_size

    def decode(self, data: bytes | memoryview, out: Bytes, right: RightFactor | None = None, begin: int = 0) -> None:
        """Decode the difference ``data``, and apply it in place: this turns ``out`` from the old into the new block.

        If there is no old block, ``out`` must contain zeros. If ``data`` has rows of a left factor, ``right`` is the
        right factor, and ``begin`` the number of bytes of the matrix before the block. Raises FormatError if ``data``
        is damaged.
        """
        if not len(data):
            return
        form, size = data[:2] if len(data) > 1 else (LOW_RANK + 1, 0)
        streams = _split(memoryview(data)[2:])
        if form == SIGNS and size < len(FLOATS) and not out.size % np.dtype(raw_dtype(FLOATS[size])).itemsize:
            self._add_signs(streams, out.view(raw_dtype(FLOATS[size])), FLOATS[size])
        elif form == LOW_RANK and right is not None and (right.dtype,) == FLOATS[size : size + 1]:
            self._add_product(streams, out, right, begin)
        elif form not in (ALL, SOME) or size not in _SIZES or out.size % size:
            raise _damaged()
        elif form == ALL:
            values = out.view(f"<u{size}")
            np.bitwise_xor(values, self._joined(streams, values.size, size), out=values)
        else:
            values = out.view(f"<u{size}")
            bits = self._stream(streams, (values.size + 7) // 8)
            which = np.unpackbits(bits, count=values.size).view(bool)
            places = np.flatnonzero(which)
            values[places] ^= self._joined(streams, places.size, size)
        if next(streams, None) is not None:
            raise _damaged()

    def _add_signs(self, streams: Iterator[tuple[memoryview, bool]], values: npt.NDArray[Any], dtype: str) -> None:
        """Add one scale to the values that grew, and subtract it from all others; round the results to ``dtype``."""
        scale = self._stream(streams, 4).view("<f4")[0]
        signs = np.unpackbits(self._stream(streams, (values.size + 7) // 8), count=values.size).view(bool)
        with np.errstate(all="ignore"):
            values[...] = cast(widened(values, dtype) + np.where(signs, scale, -scale), "float32", dtype)[0]

    def _add_product(
        self, streams: Iterator[tuple[memoryview, bool]], out: Bytes, right: RightFactor, begin: int
    ) -> None:
        """Add the product of the left rows in ``streams`` and ``right`` to the values in ``out``; round the sums."""
        dtype, (rank, columns) = raw_dtype(right.dtype), right.values.shape
        if out.size % dtype.itemsize:
            raise _damaged()
        values, first = out.view(dtype), begin // dtype.itemsize
        rows = rows_of(first, values.size, columns)
        left = self._joined(streams, (rows.stop - rows.start) * rank, 4).view("<f4").reshape(-1, rank)
        add_product(values, right.dtype, left, right.values, first % columns)

    def _joined(self, streams: Iterator[tuple[memoryview, bool]], number: int, size: int) -> npt.NDArray[np.generic]:
        if size == 1:
            return self._stream(streams, number)
        joined = np.empty((number, size), np.uint8)
        for place in range(size):
            joined[:, place] = self._stream(streams, number)
        return joined.reshape(-1).view(f"<u{size}")

    def _stream(self, streams: Iterator[tuple[memoryview, bool]], size: int) -> Bytes:
        """Return the next stream, decompressed; raises FormatError if it does not have ``size`` bytes."""
        data, plain = next(streams, (memoryview(b""), True))
        try:
            if not plain and size and self._size_of(data) != size:  # the library would allocate this many bytes
                raise _damaged()
            raw = data if plain or not size else self._decompress(data)
        except self._error as error:
            raise _damaged() from error
        if len(raw) != size:
            raise _damaged()
        return np.frombuffer(raw, np.uint8)


def _planes(values: npt.NDArray[np.generic], size: int) -> Iterator[Bytes]:
    """Yield the planes of elements: an array of the first byte of each element, then of each second byte, and so on."""
    raw = values.view(np.uint8).reshape(-1, size)
    for place in range(size):
        yield np.ascontiguousarray(raw[:, place])


def _split(data: memoryview) -> Iterator[tuple[memoryview, bool]]:
    """Yield (bytes, whether they are stored uncompressed) for each stream in the encoded block ``data``.

    Raises FormatError if ``data`` is truncated.
    """
    while data:
        if len(data) < _LENGTH.size:
            raise _damaged()
        (length,) = _LENGTH.unpack(data[: _LENGTH.size])
        size, data = length & ~_PLAIN, data[_LENGTH.size :]
        if size > len(data):
            raise _damaged()
        yield data[:size], bool(length & _PLAIN)
        data = data[size:]


def _damaged() -> FormatError:
    return FormatError("the patch is damaged: one of its blocks cannot be decoded.", rule="patch block")
