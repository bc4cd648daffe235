"""Undoes the codecs of a chunk. How many bytes a chunk unpacks to is known beforehand, and more are refused."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ...errors import FormatError
from ...storage.crc32c import crc32c
from .tensorstore import CODECS, unpacked

__all__ = ["CHECKSUM", "COMPRESSORS", "without_checksum", "without_codecs"]

CHECKSUM = "crc32c"
_DEFLATED = ("gzip", "zlib")
COMPRESSORS = (*_DEFLATED, *CODECS)
_BLOSC_HEADER = 16
_SUM = 4


def without_codecs(data: Any, codecs: Sequence[str], nbytes: int) -> Any:
    """Return the ``nbytes`` bytes of a chunk; raises FormatError if its bytes ``data`` are not valid.

    ``codecs`` has the names of the codecs in the order in which they were applied; at most one of them compresses.
    """
    sizes = [nbytes + _SUM * codecs[:at].count(CHECKSUM) for at in range(len(codecs))]
    for name, size in reversed(list(zip(codecs, sizes, strict=True))):
        data = without_checksum(data) if name == CHECKSUM else _decompressed(data, name, size)
    if len(data) != nbytes:
        raise FormatError(f"it has {len(data):,} bytes of values, not {nbytes:,}.", rule="zarr chunk")
    return data


def without_checksum(data: Any) -> Any:
    """Return the bytes before the CRC-32C at the end of ``data``; raises FormatError if they do not match it."""
    plain = memoryview(data)[:-_SUM]
    if len(data) < _SUM or crc32c(bytes(plain)) != int.from_bytes(bytes(data[-_SUM:]), "little"):
        raise FormatError("it does not match its checksum.", rule="zarr chunk")
    return plain


def _decompressed(data: Any, name: str, nbytes: int) -> Any:
    if name in _DEFLATED:
        return _inflated(data, nbytes)
    if name == "blosc":  # its header has the size that is allocated
        head = bytes(data[:_BLOSC_HEADER])
        if len(head) < _BLOSC_HEADER or int.from_bytes(head[4:8], "little") != nbytes:
            raise FormatError(f"its Blosc header is not that of {nbytes:,} bytes.", rule="zarr chunk")
    return unpacked(bytes(data), name, nbytes)


def _inflated(data: Any, nbytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # either header: gzip or zlib
    try:
        plain = inflater.decompress(data, nbytes + 1)
    except zlib.error as error:
        raise FormatError(f"it cannot be unpacked: {error}.", rule="zarr chunk") from None
    if len(plain) != nbytes or not inflater.eof:
        raise FormatError(f"it does not unpack to {nbytes:,} bytes.", rule="zarr chunk")
    return plain
