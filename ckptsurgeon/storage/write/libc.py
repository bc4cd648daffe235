"""Three calls of the C library that Python does not have. Where one is missing, its absence costs only speed.

Linux man-pages: fallocate(2), sync_file_range(2), renameat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache

__all__ = ["exchange", "reserve", "start_writing"]

_AT_FDCWD = -100
_FALLOC_FL_KEEP_SIZE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_TRIES = 100
"""How often a call that signals interrupt is made; Python handles the signals in between."""


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def reserve(fd: int, size: int) -> None:
    """Reserve the space of a file, so that a full disk is known before anything is written; raises OSError.

    File systems that cannot are passed over: glibc's ``posix_fallocate`` would write zeros there instead.
    """
    call = getattr(_libc(), "fallocate64", None)
    if call is None or size == 0:
        return
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    for _ in range(_TRIES):
        if not call(fd, _FALLOC_FL_KEEP_SIZE, 0, size):
            return
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def start_writing(fd: int, offset: int, nbytes: int) -> None:
    """Ask the kernel to begin writing a range to disk. Only a hint: ``fsync`` is what is waited for."""
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def exchange(first: str, second: str) -> None:
    """Swap two paths in one step; raises OSError where the system or the file system cannot."""
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
