"""Names of temp files, flushing them to disk, and removing what killed runs left behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["folder_of", "lock", "remove_all_leftovers", "remove_leftovers", "stem", "sync", "sync_folder", "temp_name"]

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
