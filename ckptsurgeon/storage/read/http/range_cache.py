"""Keeps the fetched bytes of a remote file whose content cannot change, until a run that needs them succeeds.

The user's cache folder gets a sparse file with the bytes and a journal of their ranges. If a run is killed or loses its
connection, both stay, and the next run fetches only the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress

from ....errors import SourceError
from ...cached_documents import cache_folder
from .._intervals import Intervals
from .spool import Journal, Spool

__all__ = ["KeptSpool", "kept_spool"]

FLUSH = 1 << 20
"""As soon as this many new bytes were received, they are flushed to disk, and their ranges are added to the journal."""
OLD_S = 14 * 24 * 3600
"""Files that were not used for this many seconds are removed at the next fetch."""
_BYTES, _JOURNAL = ".bytes", ".journal"


class KeptSpool(Spool):
    """A ``Spool`` (a local copy of a remote file) that is a named file in the cache folder, locked by this process.

    ``close`` removes the file if the run has succeeded. If the run has failed, the next run can use the file.
    """

    folder = "cache folder"
    hint = "Make room in the cache folder, or set CKPTSURGEON_CACHE to another folder."

    def __init__(self, uri: str, fd: int, path: str, content: str) -> None:
        super().__init__(uri, fd)
        self._path = path
        self._journal = Journal(path + _JOURNAL, content)
        self._fresh = Intervals()
        self._fresh_bytes = 0
        self._go_on()

    def hold(self, begin: int, end: int) -> None:
        """Mark a range as received; if ``FLUSH`` bytes were received since the last time, write them to the journal."""
        super().hold(begin, end)
        with self._lock:
            self._fresh.add(begin, end)
            self._fresh_bytes += end - begin
            if self._fresh_bytes >= FLUSH:
                self._note()

    def close(self) -> None:
        """Close the cache file, and remove it if the run succeeded; otherwise it stays for the next run."""
        if self._fd < 0:
            return
        try:
            with suppress(OSError, SourceError):
                self._note() if self.is_wanted else self._remove()
        finally:
            self._journal.close()
            super().close()

    def _go_on(self) -> None:
        """Take over the ranges in the journal as received; if it is empty or damaged, begin with an empty file."""
        found = self._journal.ranges(os.fstat(self._fd).st_size)
        for begin, end in found:
            super().hold(begin, end)
        if not found:
            self._journal.clear()
            os.ftruncate(self._fd, 0)

    def _note(self) -> None:
        """Flush the received bytes to disk, and then add their ranges to the journal."""
        try:
            os.fdatasync(self._fd)
            self._journal.add(self._fresh)
        except OSError as error:
            raise self._failed(error) from error
        self._fresh, self._fresh_bytes = Intervals(), 0

    def _remove(self) -> None:
        """Remove the journal and then the file with the bytes: without a journal, this file is never used."""
        os.unlink(self._path + _JOURNAL)
        os.unlink(self._path + _BYTES)


def kept_spool(uri: str, content: str) -> Spool:
    """Return a ``Spool`` for the bytes of a remote file; if the run fails, the next run can use these bytes.

    ``content`` is a string that identifies the content of the remote file; its digest is the name of the local file. If
    another process has locked the local file, or if the file cannot be created, the bytes are not kept for the next
    run.
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
    """Open a file, created if it does not exist, and lock it; raises OSError if another process has locked it."""
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
    """Remove old files and their journals; also if only the file or only the journal is left."""
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
    """Yield the paths, without suffix, of files that were not written to for ``OLD_S`` seconds."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, suffix = os.path.splitext(entry.path)
            if suffix in (_BYTES, _JOURNAL) and time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_S:
                yield path
