"""Stores the received bytes of a remote file on this machine, with a journal of their ranges; checks the free space."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable

from ....errors import SourceError
from ....util.text import escape, human_bytes
from .._intervals import Intervals, Range

__all__ = ["FreeSpace", "Journal", "Spool", "digest_of", "free_bytes", "nearest_existing"]

# Free disk space on this machine for fetched bytes; some space is always left for other programs.

LEFT = 1 << 30
SHARE = 0.05
"""The fraction of a small file system that must stay free; on a large file system, ``LEFT`` bytes must stay free."""
EVERY = 16 << 20
"""After this many bytes were written, the free space is checked again."""


def free_bytes(found: os.statvfs_result) -> int | None:
    """Return how many bytes may still be written to a file system; None if unknown.

    ``found`` is the result of ``os.statvfs``. Some bytes must stay free, and do not count.
    """
    if not found.f_blocks:
        return None
    left = min(LEFT, int(found.f_blocks * found.f_frsize * SHARE))
    return max(0, found.f_bavail * found.f_frsize - left)


def nearest_existing(path: str) -> str:
    """Return ``path`` as an absolute path if it exists, else the nearest folder above it that exists."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


class FreeSpace:
    """Checks from time to time if a file system has room; ``look`` is a function that calls ``os.statvfs`` on it."""

    def __init__(self, look: Callable[[], os.statvfs_result]) -> None:
        self._look = look
        self._known = 0

    def take(self, nbytes: int) -> bool:
        """Return whether there is room for ``nbytes`` more bytes; if so, they count as used from now on."""
        if self._known < nbytes:
            found = free_bytes(self._look())
            if found is not None and found < nbytes:
                return False
            self._known = EVERY if found is None else min(EVERY, found)
        self._known -= nbytes
        return True


# A journal of the ranges of a file that are on disk: one line for each range, with a checksum of the line.

_LINE = re.compile(rb"([0-9a-f]{1,16}) ([0-9a-f]{1,16}) ([0-9a-f]{8})\n")
_MOST = 64 << 20
"""The maximum size in bytes of a journal; a larger journal counts as damaged."""


class Journal:
    """A file that lists the byte ranges of a remote file that are on disk.

    ``content`` identifies the content of the remote file. A line that was written for another content counts as
    damaged.
    """

    def __init__(self, path: str, content: str) -> None:
        self._seed = zlib.crc32(content.encode())
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def ranges(self, size: int) -> list[Range]:
        """Return the byte ranges on disk of a remote file of ``size`` bytes; [] if a line of the list is damaged."""
        text = os.pread(self._fd, min(_MOST, os.fstat(self._fd).st_size), 0)
        found, at = [], 0
        while at < len(text):
            line = _LINE.match(text, at)
            if line is None or int(line[3], 16) != self._crc(line[1] + b" " + line[2]):
                return []
            begin, end = int(line[1], 16), int(line[2], 16)
            if not begin < end <= size:
                return []
            found.append((begin, end))
            at = line.end()
        return found

    def add(self, ranges: Iterable[Range]) -> None:
        """Append ranges to the list; their bytes must be on disk already. Raises OSError."""
        texts = (f"{begin:x} {end:x}".encode() for begin, end in ranges)
        data = b"".join(b"%s %08x\n" % (text, self._crc(text)) for text in texts)
        if os.write(self._fd, data) != len(data):
            raise OSError("the list of fetched ranges could not be written completely")

    def clear(self) -> None:
        """Remove all ranges."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the journal; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _crc(self, text: bytes) -> int:
        return zlib.crc32(text, self._seed)


CHUNK = 1 << 20


class Spool:
    """A local file that is filled with the bytes of a remote file piece by piece. Threads may share it.

    ``uri`` is the remote file's name in messages. ``fd`` is a descriptor of the local file. If no descriptor is given,
    the local file has no name and disappears with the process. While ``is_wanted`` is True, a run that needs the bytes
    has not succeeded yet.
    """

    folder = "folder for temporary files"
    hint = "Make room in the folder for temporary files, or set TMPDIR to another folder."
    is_wanted = False

    def __init__(self, uri: str, fd: int = -1) -> None:
        self._uri = uri
        self._fd = fd if fd >= 0 else _unnamed()
        self._room = FreeSpace(lambda: os.fstatvfs(self._fd))
        self._held = Intervals()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor of the local file; -1 after ``close``."""
        return self._fd

    def missing(self, begin: int, end: int) -> list[Range]:
        """Return the parts of a range that were not received yet."""
        with self._lock:
            return self._held.missing(begin, end)

    def hold(self, begin: int, end: int) -> None:
        """Mark a range as received."""
        with self._lock:
            self._held.add(begin, end)

    def check_room(self, nbytes: int) -> None:
        """Raise SourceError if this machine clearly has no room for ``nbytes`` bytes."""
        free = free_bytes(os.fstatvfs(self._fd))
        if free is not None and nbytes > free:
            raise SourceError(
                f"{escape(self._uri)} must be copied to this machine to be read: it has {human_bytes(nbytes)}, but "
                f"only {human_bytes(free)} are free in the {self.folder}.",
                hint=self.hint,
            )

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their offset; raises SourceError if this machine has no room for them."""
        view, at = memoryview(data), offset
        if not self._room.take(len(data)):
            raise SourceError(
                f"{escape(self._uri)} cannot be kept on this machine: there is almost no space left.", hint=self.hint
            )
        try:
            while view:
                done = os.pwrite(self._fd, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise self._failed(error) from error
        self.hold(offset, offset + len(data))

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on, which must have been received.

        Raises SourceError if the local file no longer has them.
        """
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"the fetched part of {escape(self._uri)} cannot be read from its temporary file: "
                    f"{error.strerror}.",
                    hint="Run the command again.",
                ) from error
            if not got:
                raise SourceError(
                    f"{escape(self._uri)}: the part fetched before is no longer on this machine.",
                    hint="Run the command again.",
                )
            done += got

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(
            f"{escape(self._uri)} cannot be kept on this machine: {error.strerror or error}.", hint=self.hint
        )

    def close(self) -> None:
        """Close the local file; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def digest_of(spool: Spool, size: int, like: str) -> str:
    """Return the digest of a complete file: its SHA-256 if ``like`` is a SHA-256, else the SHA-1 that git uses."""
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
