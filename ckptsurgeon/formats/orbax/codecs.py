"""Undoes the codecs of chunks. The size of an unpacked chunk is known beforehand; any other size is an error."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ...errors import FormatError
from ...storage.crc32c import crc32c
from .packages import unblosc, unzstd

__all__ = ["CHECKSUM", "COMPRESSORS", "without_checksum", "without_codecs"]

CHECKSUM = "crc32c"
_DEFLATED = ("gzip", "zlib")
_PACKED = {"zstd": unzstd, "blosc": unblosc}
COMPRESSORS = (*_DEFLATED, *_PACKED)
_SUM = 4


def without_codecs(data: Any, codecs: Sequence[str], nbytes: int) -> Any:
    """Return the ``nbytes`` bytes of a chunk without codecs; raises FormatError if ``data`` is damaged.

    ``data`` has the stored bytes. ``codecs`` has the names of the codecs in the order in which they were applied; at
    most one of them compresses.
    """
    sizes = [nbytes + _SUM * codecs[:at].count(CHECKSUM) for at in range(len(codecs))]
    for name, size in reversed(list(zip(codecs, sizes, strict=True))):
        data = without_checksum(data) if name == CHECKSUM else _decompressed(data, name, size)
    if len(data) != nbytes:
        raise FormatError(f"the chunk has {len(data):,} bytes of values, not {nbytes:,}.", rule="zarr chunk")
    return data


def without_checksum(data: Any) -> Any:
    """Return the bytes before the CRC-32C at the end of ``data``; raises FormatError if they do not match it."""
    plain = memoryview(data)[:-_SUM]
    if len(data) < _SUM or crc32c(bytes(plain)) != int.from_bytes(bytes(data[-_SUM:]), "little"):
        raise FormatError("the data do not match the checksum.", rule="zarr chunk")
    return plain


def _decompressed(data: Any, name: str, nbytes: int) -> Any:
    if name in _DEFLATED:
        return _inflated(data, nbytes)
    try:
        return _PACKED[name](bytes(data), nbytes)
    except ValueError as error:
        raise FormatError(f"{error}.", rule="zarr chunk") from None


def _inflated(data: Any, nbytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # either header: gzip or zlib
    try:
        plain = inflater.decompress(data, nbytes + 1)
    except zlib.error as error:
        raise FormatError(f"the chunk cannot be unpacked: {error}.", rule="zarr chunk") from None
    if len(plain) != nbytes or not inflater.eof:
        raise FormatError(f"the chunk does not unpack to {nbytes:,} bytes.", rule="zarr chunk")
    return plain
