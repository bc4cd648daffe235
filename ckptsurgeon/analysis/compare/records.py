"""Holds the records that are read against the checksums they were stored with, each once."""

from __future__ import annotations

from collections.abc import Iterable

from ...checkpoint.checkpoint import Checkpoint
from ...engine.run.checksums import bad_checksum, check_storage, checkable
from ...tensors.info import Storage, TensorInfo

__all__ = ["Seen", "check_records", "check_whole", "is_whole"]

Seen = set[Storage]
"""The records that were checked. They are told apart by what they are, not by what they say."""


def is_whole(info: TensorInfo) -> bool:
    """Whether a tensor is all of a record that has a checksum, so that the checksum of its bytes is the record's."""
    storage = info.storage
    if storage is None or storage.crc32 is None or not info.is_plain:
        return False
    return info.offset == 0 and info.nbytes == storage.nbytes


def check_whole(source: Checkpoint, info: TensorInfo, crc: int, seen: Seen) -> None:
    """Raise FormatError where a tensor is all of a record whose checksum is not ``crc``."""
    if is_whole(info):
        assert info.storage is not None
        if info.storage.crc32 != crc:
            raise bad_checksum(source.file(info), info.storage.name)
        seen.add(info.storage)


def check_records(source: Checkpoint, keys: Iterable[str], seen: Seen) -> None:
    """Read the records of tensors that were not checked yet; raises FormatError where one is not what was stored."""
    for key in keys:
        info = source[key]
        if info.storage in seen:
            continue  # nearly all of them, of which a file may hold a hundred thousand
        for file, storage in checkable(source, info):
            if storage not in seen:
                seen.add(storage)
                check_storage(file, storage)
