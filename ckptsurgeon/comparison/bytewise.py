"""Finds the tensors whose bytes differ between two checkpoints, at the speed of cmp."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..engine import read_part
from ..ops import blocks
from ..sources import File
from ..tensors import TensorInfo

__all__ = ["unequal_keys"]

Progress = Callable[[int, int], None]

CHUNK = 8 << 20
"""Bytes that a thread compares before it takes the next range."""
BLOCK = 256 << 10
"""Bytes held at once of each file: with two threads, what the caches hold."""
ELEMENTS = 1 << 18
THREADS = 2


@dataclass(frozen=True)
class _Range:
    """A run of bytes that both files should share."""

    key: str
    first: File
    first_offset: int
    second: File
    second_offset: int
    nbytes: int


def unequal_keys(first: Checkpoint, second: Checkpoint, keys: Sequence[str], progress: Progress | None) -> set[str]:
    """Return the keys whose bytes, laid out contiguously, are not the same."""
    unequal, ranges, odd = set[str](), list[_Range](), list[str]()
    for key in keys:
        a, b = first[key], second[key]
        if a.dtype != b.dtype:
            unequal.add(key)
        elif not (a.is_plain and b.is_plain):
            odd.append(key)
        elif not _same_place(first, second, key):
            ranges += _ranges(first, second, key)
    _compare_ranges(ranges, unequal, progress)
    unequal.update(key for key in odd if not _same_values(first, second, key))
    return unequal


def _same_place(first: Checkpoint, second: Checkpoint, key: str) -> bool:
    """Whether two plain tensors are the very same bytes of one file."""
    fds = first.file(first[key]).fileno(), second.file(second[key]).fileno()
    if None in fds or _start(first[key]) != _start(second[key]):
        return False
    return os.path.sameopenfile(*fds)  # type: ignore[arg-type]


def _start(info: TensorInfo) -> int:
    assert info.storage is not None
    return info.storage.offset + info.offset


def _ranges(first: Checkpoint, second: Checkpoint, key: str) -> Iterator[_Range]:
    a, b = first[key], second[key]
    here, there = first.file(a), second.file(b)
    for done in range(0, a.nbytes, CHUNK):
        yield _Range(key, here, _start(a) + done, there, _start(b) + done, min(CHUNK, a.nbytes - done))


def _compare_ranges(ranges: Sequence[_Range], unequal: set[str], progress: Progress | None) -> None:
    """Compare ranges in threads; the keys of those that differ are put into ``unequal``."""
    total, done, lock, local = sum(r.nbytes for r in ranges), 0, threading.Lock(), threading.local()

    def compare(part: Sequence[_Range]) -> None:
        nonlocal done
        if not hasattr(local, "buffers"):
            local.buffers = bytearray(BLOCK), bytearray(BLOCK)
        for one in part:
            if one.key not in unequal and not _equal(one, *local.buffers):
                unequal.add(one.key)
            with lock:
                done += one.nbytes
                if progress is not None:
                    progress(done, total)

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compare")
    try:
        for future in [pool.submit(compare, part) for part in _batches(ranges)]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or an interrupt, what waits is not compared


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


def _equal(one: _Range, first: bytearray, second: bytearray) -> bool:
    """Compare a range block by block; whole buffers are compared as memory, which views are not."""
    for done in range(0, one.nbytes, BLOCK):
        size = min(BLOCK, one.nbytes - done)
        if size < BLOCK:
            first, second = bytearray(size), bytearray(size)
        one.first.readinto(one.first_offset + done, memoryview(first))
        one.second.readinto(one.second_offset + done, memoryview(second))
        if first != second:
            return False
    return True


def _same_values(first: Checkpoint, second: Checkpoint, key: str) -> bool:
    """Whether two tensors of one dtype and shape hold the same values, bit for bit, whatever their layout."""
    for box in blocks(first[key].shape, ELEMENTS):
        here, there = read_part(first, first[key], box), read_part(second, second[key], box)
        if here.tobytes() != there.tobytes():
            return False
    return True
