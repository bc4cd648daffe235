"""Finds the holes of a sparse file: ranges that were never written, and are read as zeros (lseek(2), SEEK_HOLE)."""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["holes"]


def holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) byte ranges of an open file that were never written, in order; ``size`` is its size.

    A file system that does not know holes says that there are none.
    """
    end = 0
    while end < size:
        begin = _seek(fd, end, os.SEEK_HOLE, size)
        if begin >= size:
            return
        end = _seek(fd, begin, os.SEEK_DATA, size)
        yield begin, end


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """Return the next place of one kind; ``size`` if there is none, or if the file system cannot say."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError:
        return size
