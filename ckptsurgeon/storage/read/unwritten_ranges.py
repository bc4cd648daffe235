"""Finds the ranges of a file that were never written, and are read as zeros.

These are the holes of a sparse file (lseek(2), SEEK_HOLE), and space that was only reserved (fallocate(2)). Once
reserved space has been read, lseek reports it as data, so the file system's map of the file is read as well
(https://docs.kernel.org/filesystems/fiemap.html).
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Iterator

__all__ = ["unwritten_ranges"]

_MAP = 0xC020660B
"""The number of the ioctl that returns the extents of a file (FS_IOC_FIEMAP)."""
_SYNC, _RESERVED, _LAST = 1, 0x800, 1
"""A flag of the ioctl (write cached data first), and two flags of an extent (it is only reserved; it is the last)."""
_REQUEST, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")
_EXTENTS = 256
"""The most extents that are requested at once."""


def unwritten_ranges(fd: int, size: int) -> tuple[tuple[int, int], ...]:
    """Return the (begin, end) ranges of an open file that have no stored bytes and read as zeros, in order.

    ``size`` is the size of the file in bytes. Returns () if the file system does not report such ranges. Moves the
    offset of ``fd``, and may write cached bytes of the file to the disk.
    """
    return tuple(_joined([*_holes(fd, size), *_reserved(fd, size)]))


def _holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        begin = _seek(fd, end, os.SEEK_HOLE, size)
        if begin >= size:
            return
        end = _seek(fd, begin, os.SEEK_DATA, size)
        yield begin, end


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """Return the offset of the next hole, or of the next data (``whence``); ``size`` if none is found."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError:
        return size


def _reserved(fd: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges of a file that are only reserved: they have disk space, but were never written.

    The kernel first writes the cached data of the file to disk, so ranges with such data are not returned.
    """
    if sys.platform != "linux" or not any(True for _ in _mapped(fd, size, 0)):
        return []
    return list(_mapped(fd, size, _SYNC))


def _mapped(fd: int, size: int, flags: int) -> Iterator[tuple[int, int]]:
    """Yield the reserved ranges of a file in order, as the ioctl reports them; nothing if the ioctl fails.

    ``flags`` are flags of the ioctl.
    """
    at = 0
    while at < size:
        answer = bytearray(_REQUEST.size + _EXTENTS * _EXTENT.size)
        _REQUEST.pack_into(answer, 0, at, size - at, flags, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(fd, _MAP, answer)
        except OSError:
            return
        number = _REQUEST.unpack_from(answer)[3]
        extents = [_EXTENT.unpack_from(answer, _REQUEST.size + i * _EXTENT.size) for i in range(number)]
        for begin, _, length, kind in extents:
            if kind & _RESERVED and begin < size:
                yield max(begin, at), min(begin + length, size)
        if not extents or extents[-1][3] & _LAST:
            return
        at = max(at + 1, extents[-1][0] + extents[-1][2])


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges, sorted; ranges that overlap or touch are joined."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found
