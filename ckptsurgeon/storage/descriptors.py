"""Opens, locks and syncs files on this machine by their descriptors.

Only regular files are opened to be read, few are open at once, and ranges that were never written are found.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "Descriptor",
    "IrregularError",
    "lock",
    "open_regular",
    "sync",
    "sync_folder",
    "unwritten_ranges",
]

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class IrregularError(OSError):
    """The error for a path that is not a regular file; ``kind`` is the kind of file, such as "a FIFO"."""

    def __init__(self, kind: str, path: str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind}, not a regular file", path)
        self.kind = kind


def open_regular(path: str | os.PathLike[str]) -> int:
    """Return a descriptor of a regular file; raises OSError for anything else.

    Opening any other kind of file could block (a FIFO) or have an effect (a device).
    """
    name = os.fspath(path)
    try:
        _check_regular(os.stat(name), name)
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"the name of the file is invalid ({error})", name) from None
    try:
        _check_regular(os.fstat(fd), name)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_regular(found: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise IrregularError(_KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind"), path)


# Few descriptors are open at once: a model may have 10,000 files.

FEWEST, MOST = 8, 4096
_TOO_MANY = (errno.EMFILE, errno.ENFILE)

_lock = threading.RLock()
_idle: OrderedDict[Descriptor, None] = OrderedDict()
"""Open descriptors that no thread uses at present, the least recently used first."""


def _budget() -> int:
    """Return the number of files that ckptsurgeon may keep open at once: half of the limit of the process.

    The other half is for other code. The result is at least ``FEWEST`` and at most ``MOST``.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(max(soft // 2, FEWEST), MOST)


class Descriptor:
    """A file descriptor that may be closed while it is not in use, so that few descriptors are open at once.

    The function ``first`` opens the file. The attribute ``again`` is the function that reopens the file; it is
    ``first`` until it is replaced. Threads may share a Descriptor: it is not closed while a thread uses it. If an
    object closes its Descriptor in ``__del__``, neither function may refer to the object: the reference would keep the
    object alive for ever.
    """

    __slots__ = ("_fd", "_users", "again", "closed")
    _open = 0

    def __init__(self, first: Callable[[], int]) -> None:
        self.again = first
        self._users = 0
        self._fd = -1
        self.closed = False
        with _lock:
            self._fd = _opened(first)
            _idle[self] = None

    def take(self) -> int:
        """Return the descriptor, reopened if necessary; the caller must call ``give_back``. Raises OSError."""
        with _lock:
            if self.closed:
                raise OSError(errno.EBADF, "the file is closed")
            if self._fd < 0:
                self._fd = _opened(self.again)
            elif not self._users:
                del _idle[self]
            self._users += 1
            return self._fd

    def give_back(self) -> None:
        """Give back the descriptor that ``take`` returned: from now on, it may be closed."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            if self.closed:
                self._shut()
            else:
                _idle[self] = None

    @contextmanager
    def used(self) -> Iterator[int]:
        """Yield the open descriptor, which stays open during the block; raises OSError."""
        fd = self.take()
        try:
            yield fd
        finally:
            self.give_back()

    def close(self) -> None:
        """Close the descriptor for ever, as soon as no thread uses it."""
        if _lock is None:  # Python is ending: it has cleared this module, and the system closes all files
            return
        with _lock:
            self.closed = True
            if not self._users:
                _idle.pop(self, None)
                self._shut()

    def _shut(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            Descriptor._open -= 1
            os.close(fd)


def _opened(opens: Callable[[], int]) -> int:
    """Call ``opens`` to open a file; if too many are open, first close the least recently used. Raises OSError."""
    while _idle and Descriptor._open >= _budget():
        _idle.popitem(last=False)[0]._shut()
    try:
        fd = opens()
    except OSError as error:
        if error.errno not in _TOO_MANY or not _idle:
            raise
        while _idle:  # the process has reached its limit: close all unused ones
            _idle.popitem(last=False)[0]._shut()
        fd = opens()
    Descriptor._open += 1
    return fd


# Ranges of a file that were never written, and are read as zeros.
#
# These are the holes of a sparse file (lseek(2), SEEK_HOLE), and space that was only reserved (fallocate(2)). Once
# reserved space has been read, lseek reports it as data, so the file system's map of the file is read as well
# (https://docs.kernel.org/filesystems/fiemap.html).

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


# Locks, and what waits until bytes are on disk.

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of file systems without locks, such as some network file systems; temp files of killed runs stay there."""


def lock(fd: int) -> None:
    """Lock an open file or folder for this process; raises BlockingIOError if another run holds the lock.

    Raises OSError for other errors. Nothing happens on file systems without locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


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
