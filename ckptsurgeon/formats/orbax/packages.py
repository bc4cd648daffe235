"""Unpacks zstd and Blosc, to no more bytes than expected, with the optional packages zstandard and blosc."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...errors import ConfigError

__all__ = ["unblosc", "unzstd"]

_EXTRA = "pip install 'ckptsurgeon[orbax]' installs it."
"""The hint of an error about a missing package."""
_BLOSC_HEADER = 16


def unzstd(data: bytes | memoryview, most: int) -> bytes:
    """Return the bytes to which a zstd frame unpacks; raises ValueError if there are more than ``most``.

    Also raises ValueError if ``data`` is not exactly one frame. If a frame states the size of its content, zstandard
    allocates this size, otherwise ``most`` bytes.
    """
    library = _package("zstandard", "zstd")
    try:
        if library.frame_content_size(data) > most:
            raise ValueError(f"the zstd data unpack to over {most:,} bytes")
        plain: bytes = library.ZstdDecompressor().decompress(data, max_output_size=most, allow_extra_data=False)
    except library.ZstdError as error:
        raise ValueError(f"the zstd data cannot be unpacked to at most {most:,} bytes ({error})") from None
    return plain


def unblosc(data: bytes, nbytes: int) -> bytes:
    """Return the ``nbytes`` bytes to which a Blosc chunk unpacks; raises ValueError if its header gives another size.

    https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst: the header has the size of the unpacked data
    (blosc allocates this size), of a block, and of the chunk.
    """
    if len(data) < _BLOSC_HEADER or int.from_bytes(data[4:8], "little") != nbytes:
        raise ValueError(f"the Blosc header does not say that the chunk unpacks to {nbytes:,} bytes")
    if int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("the compressed size in the Blosc header is wrong")
    library = _package("blosc", "Blosc")
    try:
        plain: bytes = library.decompress(data)
    except library.blosc_extension.error as error:
        raise ValueError(f"the Blosc data cannot be unpacked ({error})") from None
    return plain


def _package(name: str, codec: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this Orbax checkpoint is compressed with {codec}: reading it needs the package {name}, which cannot be "
            f"imported: {error}.",
            hint=_EXTRA,
        ) from error
