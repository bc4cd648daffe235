"""Files that are opened when they are needed; names and links that stay within a folder."""

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

# Names of files inside a folder, as files themselves give them.


def check_name(uri: str, name: str) -> None:
    """Raise FormatError where a name does not lie inside the folder ``uri``."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise FormatError(f"{escape(uri)} names a file outside itself: {escape(name)}.", rule="outside")


# Links: what lies beside the weights of a model is its own only if it lies in its folder.

_LOCAL = ("", "file", "local")
_CACHED = re.compile(r"(.+/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.+)?")
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""A folder of the hub's cache, whose files are links to blobs, which are called by their digest."""


def leads_out(path: str) -> bool:
    """Whether a file is, by links, one that lies elsewhere than in the folder of its path.

    The folder itself may be a link: its user named it. A file of the hub's cache lies among the blobs beside it.
    """
    if scheme_of(path) not in _LOCAL:
        return False
    path = path.partition("://")[2] or path
    folder, file = os.path.realpath(os.path.dirname(path) or os.curdir), os.path.realpath(path)
    if file.startswith(os.path.join(folder, "")):
        return False
    cached = _CACHED.fullmatch(folder)
    blobs, name = os.path.split(file)
    return cached is None or blobs != f"{cached[1]}/blobs" or not _BLOB.fullmatch(name)


FEWEST, MOST = 8, 4096
_TOO_MANY = (errno.EMFILE, errno.ENFILE)

_lock = threading.RLock()
_idle: OrderedDict[Descriptor, None] = OrderedDict()
"""What is open and in nobody's hands, the longest unused first."""


def _budget() -> int:
    """Return how many may be open: half of what the process may have, the rest is for others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(max(soft // 2, FEWEST), MOST)


class Descriptor:
    """An open file, of which at most so many are open at once; ``again`` opens it after it was closed in between.

    Threads may share it: what is being used is not closed. Neither function may hold what closes it when it is deleted.
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
        """Return the open descriptor, to be given back; raises OSError."""
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
        """Say that the descriptor is no longer used."""
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
        """Lend the open descriptor; raises OSError."""
        fd = self.take()
        try:
            yield fd
        finally:
            self.give_back()

    def close(self) -> None:
        """Close it for good, once nobody uses it."""
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
    """Open one more, and close what was unused for longest where that is one too many; raises OSError."""
    while _idle and Descriptor._open >= _budget():
        _idle.popitem(last=False)[0]._shut()
    try:
        fd = opens()
    except OSError as error:
        if error.errno not in _TOO_MANY or not _idle:
            raise
        while _idle:  # others have taken theirs
            _idle.popitem(last=False)[0]._shut()
        fd = opens()
    Descriptor._open += 1
    return fd
