"""What has come of a remote file, kept on this machine: a sparse file, and the ranges of it that are filled."""

from __future__ import annotations

import hashlib
import os
import threading

from ....errors import SourceError
from ....util.text import escape, human_bytes
from .._intervals import Intervals, Range
from .room import Room, room

__all__ = ["Spool", "digest_of"]

CHUNK = 1 << 20


class Spool:
    """A local file into which a remote one is put piece by piece. Threads may share it.

    ``uri`` is what messages call the remote file. Unless a descriptor is given, the file has no name and is gone when
    the process is. ``is_wanted`` says that a run needs what is in it, and has not ended yet.
    """

    hint = "Make room in the folder for temporary files, or set TMPDIR to another."
    is_wanted = False

    def __init__(self, uri: str, fd: int = -1) -> None:
        self._uri = uri
        self._fd = fd if fd >= 0 else _unnamed()
        self._room = Room(lambda: os.fstatvfs(self._fd))
        self._held = Intervals()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor, -1 once it is closed."""
        return self._fd

    def missing(self, begin: int, end: int) -> list[Range]:
        """Return the parts of a range that have not come yet."""
        with self._lock:
            return self._held.missing(begin, end)

    def hold(self, begin: int, end: int) -> None:
        """Take a range as filled."""
        with self._lock:
            self._held.add(begin, end)

    def check_room(self, nbytes: int) -> None:
        """Raise SourceError where this machine plainly has no room for so many bytes."""
        free = room(os.fstatvfs(self._fd))
        if free is not None and nbytes > free:
            raise SourceError(
                f"{escape(self._uri)} has {human_bytes(nbytes)}, and {human_bytes(free)} are free here.", hint=self.hint
            )

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes in their place; raises SourceError where this machine has no room for them."""
        view, at = memoryview(data), offset
        if not self._room.take(len(data)):
            raise SourceError(
                f"{escape(self._uri)} cannot be kept on this machine: there is hardly any space left.", hint=self.hint
            )
        try:
            while view:
                done = os.pwrite(self._fd, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise self._failed(error) from error
        self.hold(offset, offset + len(data))

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; what is read must have come."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{escape(self._uri)} cannot be read again: {error.strerror}.") from error
            if not got:
                raise SourceError(f"{escape(self._uri)}: what was fetched of it is gone from this machine.")
            done += got

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(
            f"{escape(self._uri)} cannot be kept on this machine: {error.strerror or error}.", hint=self.hint
        )

    def close(self) -> None:
        """Close the file, once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def digest_of(spool: Spool, size: int, like: str) -> str:
    """Return the digest of what has come whole: SHA-256, or git's SHA-1 where the one it is ``like`` is that."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    found = sha256 if len(like) == 64 else git
    view = memoryview(bytearray(min(size, CHUNK)))
    for offset in range(0, size, CHUNK):
        part = view[: min(CHUNK, size - offset)]
        spool.readinto(offset, part)
        found.update(part)
    return found.hexdigest()


def _unnamed() -> int:
    import tempfile

    with tempfile.TemporaryFile(prefix="ckptsurgeon-") as file:
        return os.dup(file.fileno())
