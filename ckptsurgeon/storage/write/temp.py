"""Names of temp files, flushing and removing them, and three calls of the C library that Python lacks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

__all__ = [
    "exchange",
    "folder_of",
    "lock",
    "remove_all_leftovers",
    "remove_leftovers",
    "reserve",
    "start_writing",
    "stem",
    "sync",
    "sync_folder",
    "temp_name",
]

# Three calls of the C library that Python does not have. Where one is missing, its absence costs only speed.
#
# Linux man-pages: fallocate(2), sync_file_range(2), renameat2(2).

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


MARK = ".ckpt-tmp"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Where a file system has no locks, as some across a network: what is left by a killed run then stays."""


def temp_name(path: str) -> str:
    """Return a new hidden name beside ``path`` that tells which output it is for."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f"{stem(name)}{secrets.token_hex(4)}{MARK}")


def stem(name: str) -> str:
    """Return what the names of all that is made beside an output begin with."""
    raw = os.fsencode(name)
    short = name if len(raw) < 200 else hashlib.sha256(raw).hexdigest()
    return f".{short}."


def lock(fd: int) -> None:
    """Lock a file or folder that is being made; raises BlockingIOError where another run has it, and OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def folder_of(path: str) -> Iterator[int]:
    """Give a descriptor of the folder that a path is in: what is made there is found even if that is renamed."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def remove_leftovers(path: str) -> None:
    """Remove what killed runs left for this output: temp files and folders that nobody holds locked."""
    folder, name = os.path.split(os.path.abspath(path))
    _remove_leftovers(folder, re.escape(stem(name)))


def remove_all_leftovers(folder: str) -> None:
    """Remove the temp files and folders that killed runs left in a folder, for any output, and nobody holds locked."""
    _remove_leftovers(folder, r"\..+\.")


def _remove_leftovers(folder: str, stem: str) -> None:
    ours = re.compile(stem + r"[0-9a-f]{8}" + re.escape(MARK) + r"x*", re.DOTALL)
    with suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            if ours.fullmatch(entry):
                _remove_if_unlocked(os.path.join(folder, entry))


def _remove_if_unlocked(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        finally:
            os.close(fd)


def sync(fd: int) -> None:
    """Wait until a file is on disk; file systems that cannot say are believed."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL):
            raise


def sync_folder(path: str) -> None:
    """Wait until a folder's entries are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)
