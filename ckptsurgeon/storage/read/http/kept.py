"""What has come of a remote file whose content is pinned, kept until the run that wanted it has ended well.

Under the user's cache folder: a sparse file of the bytes that have come, and a journal of which those are. A run that
was killed or cut off leaves both, and the next one fetches only the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from ....errors import SourceError
from .._intervals import Intervals
from .spool import Journal, Spool

__all__ = ["KeptSpool", "cache_folder", "kept_spool"]

FLUSH = 1 << 20
"""Bytes that may come before they are flushed and written into the journal: what a kill costs at most."""
OLD_S = 14 * 24 * 3600
"""What was left for so long is removed when something else is fetched: nobody has gone on with it."""
_BYTES, _JOURNAL = ".bytes", ".journal"


class KeptSpool(Spool):
    """A spool with a name, locked by this process; closing it removes it unless a run has not ended well."""

    hint = "Make room in the cache folder, or set CKPTSURGEON_CACHE to another."

    def __init__(self, uri: str, fd: int, path: str, content: str) -> None:
        super().__init__(uri, fd)
        self._path = path
        self._journal = Journal(path + _JOURNAL, content)
        self._fresh = Intervals()
        self._fresh_bytes = 0
        self._go_on()

    def hold(self, begin: int, end: int) -> None:
        """Take a range as filled, and say so in the journal once enough has come."""
        super().hold(begin, end)
        with self._lock:
            self._fresh.add(begin, end)
            self._fresh_bytes += end - begin
            if self._fresh_bytes >= FLUSH:
                self._note()

    def close(self) -> None:
        """Close the file; it stays where what was wanted of it has not come, or not been used to the end."""
        if self._fd < 0:
            return
        try:
            with suppress(OSError, SourceError):
                self._note() if self.is_wanted else self._remove()
        finally:
            self._journal.close()
            super().close()

    def _go_on(self) -> None:
        """Take what the journal says, and start anew where it cannot be trusted."""
        found = self._journal.ranges(os.fstat(self._fd).st_size)
        for begin, end in found:
            super().hold(begin, end)
        if not found:
            self._journal.clear()
            os.ftruncate(self._fd, 0)

    def _note(self) -> None:
        """Write into the journal what has come, after it is on disk."""
        try:
            os.fdatasync(self._fd)
            self._journal.add(self._fresh)
        except OSError as error:
            raise self._failed(error) from error
        self._fresh, self._fresh_bytes = Intervals(), 0

    def _remove(self) -> None:
        """Remove the journal first: bytes without one are worth nothing."""
        os.unlink(self._path + _JOURNAL)
        os.unlink(self._path + _BYTES)


def cache_folder() -> str:
    """Return the folder of the user's for what may be fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.abspath(os.environ.get("CKPTSURGEON_CACHE") or os.path.join(home, "ckptsurgeon"))


def kept_spool(uri: str, content: str) -> Spool:
    """Return the spool of ``content``, a text that no other content has; its file is called by a digest of that.

    Where another process has it, or no file can be made there, it is one without a name.
    """
    folder = os.path.join(cache_folder(), "parts")
    path = os.path.join(folder, hashlib.sha256(content.encode()).hexdigest()[:32])
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _sweep(folder)
        fd = _locked(path + _BYTES)
    except OSError:
        return Spool(uri)
    try:
        return KeptSpool(uri, fd, path, content)
    except OSError:
        os.close(fd)
        return Spool(uri)


def _locked(path: str) -> int:
    """Return a file, made where there is none, that no other process has; raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(fd).st_nlink:  # its owner has just removed it
            raise FileNotFoundError(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sweep(folder: str) -> None:
    """Remove what was left long ago, and what its owner removed by half."""
    for path in _old(folder):
        with suppress(OSError):
            fd = _locked(path + _BYTES)
            try:
                for suffix in (_JOURNAL, _BYTES):
                    with suppress(FileNotFoundError):
                        os.unlink(path + suffix)
            finally:
                os.close(fd)


def _old(folder: str) -> Iterator[str]:
    """Yield what nobody has written to for long, without its suffix."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, suffix = os.path.splitext(entry.path)
            if suffix in (_BYTES, _JOURNAL) and time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_S:
                yield path
