"""What has come of a remote file whose content is pinned, kept until all of it has: a run that was cut off goes on.

It lies in CKPTSURGEON_CACHE, else in ``ckptsurgeon`` of XDG_CACHE_HOME or ``~/.cache``: a sparse file, and a journal of
the ranges in it. Nothing is flushed to disk: what a killed run has written is in the kernel's memory all the same, and
what was written before the machine was started is not believed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

from ._intervals import Range
from ._spool import Spool

__all__ = ["KeptSpool", "keep"]

BOOT = Path("/proc/sys/kernel/random/boot_id")
DAYS = 7
"""What nobody goes on with is removed after so many days, by the next run that keeps something."""

_ENTRY = struct.Struct("<QQL")
"""Where a range begins and ends, and the CRC-32 of that: a run may be killed in the middle of one."""


class KeptSpool(Spool):
    """A spool with a name, which one process at a time has."""

    def __init__(self, uri: str, path: Path, fd: int, mark: bytes) -> None:
        super().__init__(uri, fd)
        self._path, self._journal_path = path, path.with_suffix(".journal")
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._append = threading.Lock()
        for begin, end in self._believed(mark):
            super().hold(begin, end)

    def hold(self, begin: int, end: int) -> None:
        """Take a range as filled, by the next run too."""
        entry = _ENTRY.pack(begin, end, zlib.crc32(struct.pack("<QQ", begin, end)))
        with self._append, suppress(OSError):  # a range that is not written down is only fetched again
            os.write(self._journal, entry)
        super().hold(begin, end)

    def close(self, *, finished: bool = True) -> None:
        """Close it; what is ``finished`` is removed."""
        if self._fd < 0:
            return
        if finished:
            self._journal_path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        os.close(self._journal)
        super().close()

    def _believed(self, mark: bytes) -> list[Range]:
        """Return the ranges of a journal, which is then at its end; one of another boot is begun anew."""
        size = os.fstat(self._fd).st_size
        raw = os.pread(self._journal, os.fstat(self._journal).st_size, 0)
        found, at = [], len(mark)
        if not raw.startswith(mark):
            raw = mark
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._journal, 0)
            os.pwrite(self._journal, mark, 0)
        while at + _ENTRY.size <= len(raw):
            begin, end, crc = _ENTRY.unpack_from(raw, at)
            if crc != zlib.crc32(struct.pack("<QQ", begin, end)) or not begin <= end <= size:
                break
            found.append((begin, end))
            at += _ENTRY.size
        os.ftruncate(self._journal, at)
        os.lseek(self._journal, at, os.SEEK_SET)
        return found


def keep(uri: str, validator: str, size: int) -> KeptSpool | None:
    """Return what is kept of a content; None where that cannot be, or another process fetches the same.

    ``uri`` has no credentials in it.
    """
    with suppress(OSError):
        boot = BOOT.read_bytes()
        identity = hashlib.sha256(f"{uri}\n{validator}\n{size}".encode("utf-8", "surrogatepass")).digest()
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(folder)
        path = folder / f"{identity.hex()}.part"
        fd = _locked(path)
        if fd >= 0:
            return KeptSpool(uri, path, fd, hashlib.sha256(boot + identity).digest())
    return None


def _folder() -> Path:
    own = os.environ.get("CKPTSURGEON_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(own or os.path.join(cache, "ckptsurgeon"))


def _locked(path: Path) -> int:
    """Open a file that no other process has locked; returns -1 where one has."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
            os.close(fd)  # whoever had it has just removed it
        except FileNotFoundError:
            os.close(fd)
        except OSError:
            os.close(fd)
            return -1


def _tidy(folder: Path) -> None:
    """Remove what was kept long ago and is not being fetched."""
    for path in folder.glob("*.part"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - DAYS * 86400 and (fd := _locked(path)) >= 0:
                path.with_suffix(".journal").unlink(missing_ok=True)
                path.unlink()
                os.close(fd)
