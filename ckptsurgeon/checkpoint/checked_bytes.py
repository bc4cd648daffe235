"""Reads the bytes that a tensor reaches, and checks the checksum of the storage that they lie in."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import FormatError
from ..storage.crc32c import crc32c
from ..storage.read.base import File
from ..tensors.info import Storage, TensorInfo
from ..tensors.strides import reach
from ..util.text import escape

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = ["checked_bytes"]

_PIECE = 1 << 20


def checked_bytes(checkpoint: Checkpoint, info: TensorInfo) -> bytearray:
    """Read what a tensor reaches of its storage; the checksum of the whole storage is checked, once."""
    file, storage = checkpoint.file(info), info.storage
    assert storage is not None
    length = reach(info.shape, info.stride) * info.itemsize if info.stride else info.nbytes
    data = bytearray(length)
    file.readinto(storage.offset + info.offset, memoryview(data))
    if storage.has_checksum and storage not in checkpoint.checked:
        for expected, sum_of in ((storage.crc32, zlib.crc32), (storage.crc32c, crc32c)):
            if expected is None:
                continue
            whole = sum_of(data, 0) if length == storage.nbytes else _sum(file, storage, sum_of)
            if whole != expected:
                raise FormatError(
                    f"{escape(checkpoint.path)}: {escape(storage.name)} does not have the checksum it should.",
                    rule="crc",
                )
        checkpoint.checked.add(storage)
    return data


def _sum(file: File, storage: Storage, sum_of: Callable[[Any, int], int]) -> int:
    """Return a checksum of a storage, read in pieces."""
    buffer = memoryview(bytearray(min(_PIECE, storage.nbytes)))
    at, crc = 0, 0
    while at < storage.nbytes:
        piece = buffer[: storage.nbytes - at]
        file.readinto(storage.offset + at, piece)
        crc = sum_of(piece, crc)
        at += len(piece)
    return crc
