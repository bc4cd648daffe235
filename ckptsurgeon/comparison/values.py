"""Compares the values of tensors that two checkpoints share: bytes first, and numbers only where bytes differ."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoint import Checkpoint
from ..engine import read_part
from ..ops import Array, Box, blocks, cast
from ..sources import File
from ..tensors import DTYPES, TensorInfo
from .difference import Difference, Numbers, Pair, Tolerance

__all__ = ["same_bytes", "with_values"]

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


def with_values(
    found: Difference,
    first: Checkpoint,
    second: Checkpoint,
    keys: Sequence[str],
    tolerance: Tolerance,
    progress: Callable[[int, int], None] | None,
) -> Difference:
    """Return a difference with the values of ``keys``, which have one shape in both, compared."""
    not_compared = {key: _opaque(first[key], second[key]) for key in keys if _opaque(first[key], second[key])}
    readable = [key for key in keys if key not in not_compared]
    unequal = _unequal(first, second, readable, progress)
    retyped, changed, close, same = [], [], [], []
    for key in readable:
        a, b = first[key], second[key]
        if key not in unequal:
            same.append(key)
            continue
        numbers, within = _measure(first, a, second, b, tolerance)
        pair = Pair(key, a, b, numbers)
        if a.dtype != b.dtype:
            retyped.append(pair)
        elif within:
            close.append(pair)
        elif numbers.differing:
            changed.append(pair)
        else:
            same.append(key)
    return replace(
        found,
        retyped=tuple(retyped),
        changed=tuple(changed),
        close=tuple(close),
        identical=len(same),
        same=tuple(same),
        not_compared=not_compared,
    )


def _opaque(first: TensorInfo, second: TensorInfo) -> str:
    return first.opaque or second.opaque


def _unequal(
    first: Checkpoint, second: Checkpoint, keys: Sequence[str], progress: Callable[[int, int], None] | None
) -> set[str]:
    """Return the keys whose bytes, laid out contiguously, are not the same."""
    unequal, ranges, odd = set[str](), list[_Range](), list[str]()
    for key in keys:
        a, b = first[key], second[key]
        if a.dtype != b.dtype:
            unequal.add(key)
        elif not (a.is_plain and b.is_plain):
            odd.append(key)
        elif not _same_place(first.file(a), a, second.file(b), b):
            ranges += _ranges(key, first.file(a), a, second.file(b), b)
    _compare_ranges(ranges, unequal, progress)
    unequal.update(key for key in odd if not same_bytes(first, key, second, key))
    return unequal


def _same_place(first: File, a: TensorInfo, second: File, b: TensorInfo) -> bool:
    """Whether two tensors are the very same bytes of one file."""
    fds = first.fileno(), second.fileno()
    assert a.storage is not None
    assert b.storage is not None
    if None in fds or a.storage.offset + a.offset != b.storage.offset + b.offset:
        return False
    return os.path.sameopenfile(*fds)  # type: ignore[arg-type]


def _ranges(key: str, first: File, a: TensorInfo, second: File, b: TensorInfo) -> Iterator[_Range]:
    assert a.storage is not None
    assert b.storage is not None
    here, there = a.storage.offset + a.offset, b.storage.offset + b.offset
    for done in range(0, a.nbytes, CHUNK):
        yield _Range(key, first, here + done, second, there + done, min(CHUNK, a.nbytes - done))


def _compare_ranges(ranges: Sequence[_Range], unequal: set[str], progress: Callable[[int, int], None] | None) -> None:
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

    with ThreadPoolExecutor(THREADS, thread_name_prefix="compare") as pool:
        for future in [pool.submit(compare, part) for part in _batches(ranges)]:
            future.result()


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


def same_bytes(first: Checkpoint, key: str, second: Checkpoint, other: str) -> bool:
    """Whether two tensors of one dtype and shape hold the same values, bit for bit, whatever their layout."""
    a, b = first[key], second[other]
    for box in blocks(a.shape, ELEMENTS):
        here, there = read_part(first, a, box), read_part(second, b, box)
        if here.tobytes() != there.tobytes():
            return False
    return True


def _measure(
    first: Checkpoint, a: TensorInfo, second: Checkpoint, b: TensorInfo, tolerance: Tolerance
) -> tuple[Numbers, bool]:
    """Return how far two tensors are apart, and whether that is within the tolerance."""
    differing = nan = 0
    largest = apart = norm_a = norm_b = product = 0.0
    within = bool(tolerance.absolute or tolerance.relative)
    for box in blocks(a.shape, ELEMENTS):
        x, y = _wide(first, a, box), _wide(second, b, box)
        differing += int(np.count_nonzero(~((x == y) | (np.isnan(x) & np.isnan(y)))))
        nan += int(np.count_nonzero(np.isnan(x) != np.isnan(y)))
        within = within and bool(
            np.isclose(x, y, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True).all()
        )
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        gap = np.abs(x - y)
        largest = max(largest, float(gap.max(initial=0.0)))
        apart, product = apart + float(np.vdot(gap, gap).real), product + float(np.vdot(x, y).real)
        norm_a, norm_b = norm_a + float(np.vdot(x, x).real), norm_b + float(np.vdot(y, y).real)
    relative = math.sqrt(apart / norm_a) if norm_a else None
    cosine = product / math.sqrt(norm_a * norm_b) if norm_a and norm_b else None
    return Numbers(differing, largest, relative, cosine, nan), within


def _wide(source: Checkpoint, info: TensorInfo, box: Box) -> Array:
    """Return part of a tensor in the widest type of its kind."""
    kind = "complex128" if DTYPES[info.dtype].kind == "complex" else "float64"
    values, _ = cast(read_part(source, info, box).reshape(-1), info.dtype, kind)
    return values
