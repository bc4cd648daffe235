"""What was fetched of a remote file whose content is pinned, kept until the run that wanted it ends.

Under the user's cache folder: a sparse file of the bytes received, and a journal of their ranges. A run that
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
"""How many bytes may be received before they are flushed and added to the journal: a kill loses at most these."""
OLD_S = 14 * 24 * 3600
"""Files that were left unused for so long are removed at the next fetch."""
_BYTES, _JOURNAL = ".bytes", ".journal"


class KeptSpool(Spool):
    """A spool with a name, locked by this process; closing it removes it unless the run has failed."""

    hint = "Make room in the cache folder, or set CKPTSURGEON_CACHE to another."

    def __init__(self, uri: str, fd: int, path: str, content: str) -> None:
        super().__init__(uri, fd)
        self._path = path
        self._journal = Journal(path + _JOURNAL, content)
        self._fresh = Intervals()
        self._fresh_bytes = 0
        self._go_on()

    def hold(self, begin: int, end: int) -> None:
        """Mark a range as filled, and add it to the journal once enough bytes were received."""
        super().hold(begin, end)
        with self._lock:
            self._fresh.add(begin, end)
            self._fresh_bytes += end - begin
            if self._fresh_bytes >= FLUSH:
                self._note()

    def close(self) -> None:
        """Close the file; it stays if the run that needs it has not succeeded."""
        if self._fd < 0:
            return
        try:
            with suppress(OSError, SourceError):
                self._note() if self.is_wanted else self._remove()
        finally:
            self._journal.close()
            super().close()

    def _go_on(self) -> None:
        """Continue from the journal, or start anew if it cannot be trusted."""
        found = self._journal.ranges(os.fstat(self._fd).st_size)
        for begin, end in found:
            super().hold(begin, end)
        if not found:
            self._journal.clear()
            os.ftruncate(self._fd, 0)

    def _note(self) -> None:
        """Add the received ranges to the journal, after their bytes are on disk."""
        try:
            os.fdatasync(self._fd)
            self._journal.add(self._fresh)
        except OSError as error:
            raise self._failed(error) from error
        self._fresh, self._fresh_bytes = Intervals(), 0

    def _remove(self) -> None:
        """Remove both files, the journal first: bytes without a journal are never used."""
        os.unlink(self._path + _JOURNAL)
        os.unlink(self._path + _BYTES)


def cache_folder() -> str:
    """Return the user's cache folder, for files that can be fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.abspath(os.environ.get("CKPTSURGEON_CACHE") or os.path.join(home, "ckptsurgeon"))


def kept_spool(uri: str, content: str) -> Spool:
    """Return the spool of ``content``, a text that identifies the content; its file is named by the text's digest.

    If another process holds it, or no file can be made there, the spool has no name.
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
    """Return a locked file, made if there is none; raises OSError if another process holds it."""
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
    """Remove old files, and halves of pairs."""
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
    """Yield the paths, without suffix, of files that were not written to for long."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, suffix = os.path.splitext(entry.path)
            if suffix in (_BYTES, _JOURNAL) and time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_S:
                yield path
