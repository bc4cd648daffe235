"""What has come of a remote file, kept on this machine: a sparse file, a journal of its ranges, and room for it."""

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

__all__ = ["Journal", "Room", "Spool", "digest_of", "existing", "room"]

# Room on this machine for what comes from elsewhere: some is left to everybody else, however much is sent.

LEFT = 1 << 30
SHARE = 0.05
"""So many bytes stay free, or on a small file system this part of it."""
EVERY = 16 << 20
"""After so many bytes it is looked again."""


def room(found: os.statvfs_result) -> int | None:
    """Return how many bytes may be written to a file system, None where it does not say."""
    if not found.f_blocks:
        return None
    left = min(LEFT, int(found.f_blocks * found.f_frsize * SHARE))
    return max(0, found.f_bavail * found.f_frsize - left)


def existing(path: str) -> str:
    """Return a path, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


class Room:
    """Looks now and then whether there is room for what is written; ``look`` gives a file system's figures."""

    def __init__(self, look: Callable[[], os.statvfs_result]) -> None:
        self._look = look
        self._known = 0

    def take(self, nbytes: int) -> bool:
        """Whether there is room for so many more bytes."""
        if self._known < nbytes:
            found = room(self._look())
            if found is not None and found < nbytes:
                return False
            self._known = EVERY if found is None else min(EVERY, found)
        self._known -= nbytes
        return True


# A journal of the ranges of a file that are on disk: one line each, appended; each carries a checksum of itself.

_LINE = re.compile(rb"([0-9a-f]{1,16}) ([0-9a-f]{1,16}) ([0-9a-f]{8})\n")
_MOST = 64 << 20
"""Bytes of a journal at most: no file is fetched in a million pieces."""


class Journal:
    """``content`` is what the ranges are of: lines that were written for another do not count."""

    def __init__(self, path: str, content: str) -> None:
        self._seed = zlib.crc32(content.encode())
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def ranges(self, size: int) -> list[Range]:
        """Return what it says of a file of ``size`` bytes on disk; nothing, where one line is damaged or torn."""
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
        """Append ranges, whose bytes must be on disk; raises OSError."""
        texts = (f"{begin:x} {end:x}".encode() for begin, end in ranges)
        data = b"".join(b"%s %08x\n" % (text, self._crc(text)) for text in texts)
        if os.write(self._fd, data) != len(data):
            raise OSError("the journal could not be written whole")

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file, once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _crc(self, text: bytes) -> int:
        return zlib.crc32(text, self._seed)


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
