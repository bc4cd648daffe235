"""Makes names of temp files, flushes and removes temp files, and wraps three functions of the C library."""

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
    "leftovers",
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

# Three functions of the C library that Python does not have.
#
# Linux man-pages: fallocate(2), sync_file_range(2), renameat2(2).

_AT_FDCWD = -100
_FALLOC_FL_KEEP_SIZE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_TRIES = 100
"""How often a call is retried after a signal interrupts it; Python handles the signals in between."""


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def reserve(fd: int, size: int) -> None:
    """Reserve disk space for a file, so that a full disk is found before anything is written; raises OSError.

    Nothing happens on file systems that cannot do this: glibc's ``posix_fallocate`` would write zeros there.
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
    """Ask the kernel to begin writing a range to disk. This is only a hint: ``fsync`` is the call that waits."""
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def exchange(first: str, second: str) -> None:
    """Swap two paths atomically; raises OSError if the system or the file system does not support this."""
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


MARK = ".ckpt-tmp"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of file systems without locks, such as some network file systems; temp files of killed runs stay there."""


def temp_name(path: str) -> str:
    """Return a new hidden name next to ``path`` that contains the name of the output."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f"{stem(name)}{secrets.token_hex(4)}{MARK}")


def stem(name: str) -> str:
    """Return the prefix with which the names of all temp files for the output ``name`` begin."""
    raw = os.fsencode(name)
    short = name if len(raw) < 200 else hashlib.sha256(raw).hexdigest()
    return f".{short}."


def lock(fd: int) -> None:
    """Lock an open file or folder for this process; raises BlockingIOError if another run holds the lock.

    Raises OSError for other errors. Nothing happens on file systems without locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def folder_of(path: str) -> Iterator[int]:
    """Yield a descriptor of the folder that contains ``path``; it stays valid if the folder is renamed."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def leftovers(path: str) -> list[str]:
    """Return the paths of all temp files and folders of the output ``path``, also of a run that is still writing."""
    folder, name = os.path.split(os.path.abspath(path))
    return _leftovers(folder, re.escape(stem(name)))


def remove_leftovers(path: str, *, but: str = "", folders: bool = True) -> None:
    """Remove the temp files and folders of the output ``path`` that killed runs left, if they are not locked.

    ``but`` is the path of a temp folder that is not removed, because this run continues it. If ``folders`` is false,
    only files are removed.
    """
    for found in leftovers(path):
        if found != but and (folders or not os.path.isdir(found)):
            _remove_if_unlocked(found)


def remove_all_leftovers(folder: str) -> None:
    """Remove the unlocked temp files and folders that killed runs left in a folder, for any output."""
    for found in _leftovers(folder, r"\..+\."):
        _remove_if_unlocked(found)


def _leftovers(folder: str, stem: str) -> list[str]:
    ours = re.compile(stem + r"[0-9a-f]{8}" + re.escape(MARK) + r"x*", re.DOTALL)
    try:
        return [os.path.join(folder, entry) for entry in sorted(os.listdir(folder)) if ours.fullmatch(entry)]
    except OSError:
        return []


def _remove_if_unlocked(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        finally:
            os.close(fd)


def sync(fd: int) -> None:
    """Wait until a file is on disk; nothing happens on file systems without ``fsync``."""
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
