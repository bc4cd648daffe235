"""Copies files in the kernel: as shared blocks where the file system has them (copy_file_range(2)), else by hand."""

from __future__ import annotations

import errno
import os

from ..read.base import File
from ..write.output_checks import output_error
from ..write.staging import StagedFile

__all__ = ["copy_bytes"]

CHUNK = 1 << 22
_BY_HAND = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.EIO}
"""Where the kernel will not copy, or does not say which of the two files failed."""


def copy_bytes(source: File, output: StagedFile) -> None:
    """Copy all of a file; raises SourceError where it ends too soon, OutputError where it cannot be written."""
    done = _in_kernel(source, output)
    while done < source.size:
        chunk = source.read(done, min(CHUNK, source.size - done))
        output.write(done, chunk)
        done += len(chunk)


def _in_kernel(source: File, output: StagedFile) -> int:
    """Return how many bytes the kernel has copied."""
    done = 0
    with source.descriptor() as fd, output.descriptor() as out:
        while fd is not None and done < source.size and hasattr(os, "copy_file_range"):
            try:
                moved = os.copy_file_range(fd, out, source.size - done, done, done)
            except OSError as error:
                if error.errno not in _BY_HAND:
                    raise output_error(output.shown, error) from error
                break
            if not moved:
                break
            done += moved
    return done
