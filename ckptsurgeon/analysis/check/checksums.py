"""Compares the checksums that a file stores for its records with the checksums of the records' bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import check_storage, checkable
from ...errors import FormatError
from ...tensors.info import Storage, TensorInfo
from .measuring.measured import Measured

__all__ = ["Checksums", "checked_sums"]


@dataclass(frozen=True)
class Checksums:
    """The number of records with a stored checksum, and the names of those whose bytes do not match it (``bad``)."""

    number: int = 0
    bad: tuple[str, ...] = ()


def checked_sums(checkpoint: Checkpoint, measured: Mapping[str, Measured]) -> Checksums:
    """Compare all stored checksums with the bytes.

    ``measured`` has the CRC-32 of each tensor. For a record that consists of one tensor, this CRC-32 is used. Other
    records are read again.
    """
    seen: dict[Storage, bool] = {}
    for key, info in checkpoint.items():
        for file, storage in checkable(checkpoint, info):
            one = measured.get(key)
            if storage.crc32 is not None and storage.crc32c is None and one is not None and _fills(info, storage):
                seen[storage] = one.crc32 == storage.crc32
            elif storage not in seen:
                try:
                    check_storage(file, storage)
                    seen[storage] = True
                except FormatError:
                    seen[storage] = False
    return Checksums(len(seen), tuple(storage.name for storage, is_right in seen.items() if not is_right))


def _fills(info: TensorInfo, storage: Storage) -> bool:
    return info.storage is storage and info.is_plain and info.offset == 0 and info.nbytes == storage.nbytes
