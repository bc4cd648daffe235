"""Finds the tensors whose bytes differ between two checkpoints, as fast as ``cmp``, and checks stored checksums."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import bad_checksum, check_storage, checkable, combine, crc32
from ...engine.compute.reading import read_part
from ...storage.read.base import File
from ...tensors.info import Storage, TensorInfo
from ...tensors.ops.regions import blocks

__all__ = ["Seen", "check_records", "check_whole", "is_whole", "unequal_keys"]

# Checksums: every record that is read is checked once against its stored CRC-32.

Seen = set[Storage]
"""The records of a file (such as the entries of a zip archive) whose checksums were checked."""


def is_whole(info: TensorInfo) -> bool:
    """Return whether a tensor fills a whole record, such as an entry of a zip archive, that has a stored CRC-32.

    The stored CRC-32 is then also the CRC-32 of the tensor's bytes.
    """
    storage = info.storage
    if storage is None or storage.crc32 is None or not info.is_plain:
        return False
    return info.offset == 0 and info.nbytes == storage.nbytes


def check_whole(source: Checkpoint, info: TensorInfo, crc: int, seen: Seen) -> None:
    """Raise FormatError if a tensor fills a whole record (such as a zip entry) whose stored CRC-32 is not ``crc``.

    ``crc`` is the CRC-32 of the tensor's bytes. A record that was checked is added to ``seen``.
    """
    if is_whole(info):
        assert info.storage is not None
        if info.storage.crc32 != crc:
            raise bad_checksum(source.file(info), info.storage.name)
        seen.add(info.storage)


def check_records(source: Checkpoint, keys: Iterable[str], seen: Seen) -> None:
    """Read the records of a file (such as zip entries) that hold the tensors ``keys``, and check their stored CRC-32.

    Records in ``seen`` are skipped; other records are added to ``seen``. Raises FormatError for a wrong checksum.
    """
    for key in keys:
        info = source[key]
        if info.storage in seen:
            continue  # the usual case, in files with up to a hundred thousand records
        for file, storage in checkable(source, info):
            if storage not in seen:
                seen.add(storage)
                check_storage(file, storage)


Progress = Callable[[int, int], None]

CHUNK = 8 << 20
"""The size in bytes of a range; one thread compares one range at a time."""
BLOCK = 256 << 10
"""At most this many bytes of each file are in memory at once, so that two threads stay within the CPU caches."""
ELEMENTS = 1 << 18
THREADS = 2


@dataclass(frozen=True)
class _Range:
    """A range of bytes of a tensor, to be compared between two files; ``summed`` is set if its CRC-32 is needed."""

    key: str
    first: File
    first_offset: int
    second: File
    second_offset: int
    nbytes: int
    summed: bool


_Sums = dict[str, list[tuple[int, int, int]]]
"""For each key, the (offset, CRC-32, length) of the ranges that are equal."""


def unequal_keys(first: Checkpoint, second: Checkpoint, keys: Sequence[str], progress: Progress | None) -> set[str]:
    """Return the keys in ``keys`` whose tensors differ between two checkpoints, in dtype or in bytes.

    A tensor that is not contiguous is compared as if it were contiguous. If both checkpoints have a tensor at the same
    place of the same file, its bytes are not read. Every record (such as a zip entry) that is read is checked against
    its stored CRC-32. Raises FormatError for a wrong checksum.
    """
    unequal, ranges, odd = set[str](), list[_Range](), list[str]()
    read = [key for key in keys if not _same_place(first, second, key)]
    for key in read:
        a, b = first[key], second[key]
        if a.dtype != b.dtype:
            unequal.add(key)
        elif not (a.is_plain and b.is_plain):
            odd.append(key)
        else:
            ranges += _ranges(first, second, key)
    sums = _compare_ranges(ranges, unequal, progress)
    unequal.update(key for key in odd if not _same_values(first, second, key))
    for source in (first, second):
        seen = _checked(source, {key: parts for key, parts in sums.items() if key not in unequal})
        check_records(source, read, seen)
    return unequal


def _checked(source: Checkpoint, sums: _Sums) -> Seen:
    """Compare the CRC-32s ``sums``, computed during the comparison, with the CRC-32s in the files of a checkpoint.

    Returns the records (such as zip entries) that were checked. Raises FormatError for a wrong checksum.
    """
    seen: Seen = set()
    for key, parts in sums.items():
        crc = parts[0][1] if len(parts) == 1 else combine([(crc, nbytes) for _, crc, nbytes in sorted(parts)])
        check_whole(source, source[key], crc, seen)
    return seen


def _same_place(first: Checkpoint, second: Checkpoint, key: str) -> bool:
    """Return whether both checkpoints store a tensor in the same bytes of the same file.

    If the dtypes differ, or one of the tensors is not stored contiguously as plain bytes, it returns False.
    """
    a, b = first[key], second[key]
    if a.dtype != b.dtype or not (a.is_plain and b.is_plain):
        return False
    if _start(a) != _start(b):
        return False
    with first.file(a).descriptor() as here, second.file(b).descriptor() as there:
        return here is not None and there is not None and os.path.sameopenfile(here, there)


def _start(info: TensorInfo) -> int:
    assert info.storage is not None
    return info.storage.offset + info.offset


def _ranges(first: Checkpoint, second: Checkpoint, key: str) -> Iterator[_Range]:
    a, b = first[key], second[key]
    here, there, summed = first.file(a), second.file(b), is_whole(a) or is_whole(b)
    for done in range(0, a.nbytes, CHUNK):
        yield _Range(key, here, _start(a) + done, there, _start(b) + done, min(CHUNK, a.nbytes - done), summed)


def _compare_ranges(ranges: Sequence[_Range], unequal: set[str], progress: Progress | None) -> _Sums:
    """Compare byte ranges, using threads; return the CRC-32s of equal ranges, for tensors with a stored checksum.

    Adds the key of each tensor whose bytes differ to ``unequal``.
    """
    total, done, lock, local = sum(r.nbytes for r in ranges), 0, threading.Lock(), threading.local()
    sums: _Sums = {}

    def compare(part: Sequence[_Range]) -> None:
        nonlocal done
        if not hasattr(local, "buffers"):
            local.buffers = bytearray(BLOCK), bytearray(BLOCK)
        for one in part:
            crc = None if one.key in unequal else _crc_if_equal(one, *local.buffers)
            if crc is None:
                unequal.add(one.key)
            with lock:
                if crc is not None and one.summed:
                    sums.setdefault(one.key, []).append((one.first_offset, crc, one.nbytes))
                done += one.nbytes
                if progress is not None:
                    progress(done, total)

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compare")
    try:
        for future in [pool.submit(compare, part) for part in _batches(ranges)]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # drop waiting ranges after an error or an interrupt
    return sums


def _batches(ranges: Sequence[_Range]) -> Iterator[list[_Range]]:
    batch, size = list[_Range](), 0
    for one in ranges:
        batch.append(one)
        size += one.nbytes
        if size >= CHUNK or len(batch) >= 256:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _crc_if_equal(one: _Range, first: bytearray, second: bytearray) -> int | None:
    """Compare a range block by block; return its CRC-32 (0 if it is not needed), or None if the range differs.

    ``first`` and ``second`` are buffers of one block each. Whole bytearrays are compared, because Python compares these
    at once, but memoryviews byte by byte. The CRC-32 is computed while the block is in the CPU caches.
    """
    crc = 0
    for done in range(0, one.nbytes, BLOCK):
        size = min(BLOCK, one.nbytes - done)
        if size < BLOCK:
            first, second = bytearray(size), bytearray(size)
        one.first.readinto(one.first_offset + done, memoryview(first))
        one.second.readinto(one.second_offset + done, memoryview(second))
        if first != second:
            return None
        if one.summed:
            crc = crc32(first, crc)
    return crc


def _same_values(first: Checkpoint, second: Checkpoint, key: str) -> bool:
    """Return whether two tensors of the same dtype and shape have the same values, bit for bit; strides may differ."""
    for box in blocks(first[key].shape, ELEMENTS):
        here, there = read_part(first, first[key], box), read_part(second, second[key], box)
        if here.tobytes() != there.tobytes():
            return False
    return True
