"""Keeps few files open at once, and checks that names and links stay within a folder."""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import FormatError
from ...util.text import escape
from .uri import scheme_of

__all__ = ["Descriptor", "check_name", "leads_out"]

# Checks the names of files in a folder that an index or manifest lists.


def check_name(uri: str, name: str) -> None:
    """Raise FormatError if ``name`` is not a path inside the folder ``uri``."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise FormatError(f"the folder {escape(uri)} refers to a file outside of it: {escape(name)}.", rule="outside")


# Links: a file next to the weights belongs to the model only if it is really in the model's folder.

_LOCAL = ("", "file", "local")
_CACHED = re.compile(r"(.+/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.+)?")
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""Matches the name of a blob in the hub's cache: a digest."""


def leads_out(path: str, folder: str = "") -> bool:
    """Return whether a file is a link that leads out of ``folder``, by default the folder in which the file is.

    The folder itself may be a link, since the user chose the folder. For a file in the hub's cache, a link to a blob of
    the same repository does not count as leading out.
    """
    if scheme_of(path) not in _LOCAL:
        return False
    path = path.partition("://")[2] or path
    if not os.path.islink(path):
        return False
    folder = folder.partition("://")[2] or folder or os.path.dirname(path)
    folder, file = os.path.realpath(folder or os.curdir), os.path.realpath(path)
    if file.startswith(os.path.join(folder, "")):
        return False
    cached = _CACHED.fullmatch(folder)
    blobs, name = os.path.split(file)
    return cached is None or blobs != f"{cached[1]}/blobs" or not _BLOB.fullmatch(name)


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
