"""Finds the holes of a sparse file: ranges that were never written, and are read as zeros (lseek(2), SEEK_HOLE)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .base import File

__all__ = ["holes"]


def holes(file: File) -> Iterator[tuple[int, int]]:
    """Yield the (begin, end) byte ranges of a file on this machine that were never written, in order.

    A file system that does not know holes says that there are none. Yields nothing for a file that is not on this
    machine. Raises SourceError if the file cannot be opened again.
    """
    with file.descriptor() as fd:
        if fd is None:
            return
        end = 0
        while end < file.size:
            begin = _seek(fd, end, os.SEEK_HOLE, file.size)
            if begin >= file.size:
                return
            end = _seek(fd, begin, os.SEEK_DATA, file.size)
            yield begin, end


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """Return the next place of one kind; ``size`` if there is none, or if the file system cannot say."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
            raise
        return size
