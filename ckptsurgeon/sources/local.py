"""Files on this machine. Read with ``pread``, never mapped: a file that shrinks is an error, not a SIGBUS."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from typing import NoReturn

from ..errors import SourceError
from ..text import escape
from ._names import check_name
from .base import Advance, Source

__all__ = ["SOURCE", "LocalFile", "LocalFolder", "broken_links", "link_of"]

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


INDEX = ".index"
"""TensorFlow's name for a checkpoint is no file: it is what its files begin with, this one and those of its data."""


class LocalFile:
    """A regular file, held open so that what was planned is what is read."""

    remote = False
    validator = ""

    def __init__(self, path: str, uri: str = "") -> None:
        self.path = path
        self.uri = uri or path
        self.name = os.path.basename(path)
        self._fd = _open_regular(path, self.uri)
        found = os.fstat(self._fd)
        self.size = found.st_size
        self.mtime_ns: int | None = found.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises SourceError when the file ends before."""
        try:
            data = os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise self._failed(error) from error
        if len(data) == nbytes:
            return data
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError when the file ends before."""
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self._fd, [view[done:]], offset + done)
                if got == 0:
                    raise SourceError(f"{escape(self.uri)} ended at byte {offset + done} while it was read.")
                done += got
        except OSError as error:
            raise self._failed(error) from error

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: what will be read is here."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: it is here, and stays."""

    def fileno(self) -> int | None:
        """Return the descriptor."""
        return self._fd

    def folder(self) -> LocalFolder:
        """Return the folder the file lies in."""
        return LocalFolder(os.path.dirname(self.path) or ".")

    def close(self) -> None:
        """Close the descriptor, once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __copy__(self) -> LocalFile:
        """Return the file itself: a second owner of one descriptor would close it under the first."""
        return self

    def __deepcopy__(self, memo: object) -> LocalFile:
        """Return the file itself."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{escape(self.uri)} is open and cannot be pickled; open it anew where it is wanted")

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(f"{escape(self.uri)} cannot be read: {error.strerror or error}.")

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


class LocalFolder:
    """A folder on this machine; only plain names inside it are ever opened."""

    def __init__(self, path: str, uri: str = "") -> None:
        self.path = path
        self.uri = uri or path
        self.name = os.path.basename(os.path.abspath(path))

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted; folders and other things are left out."""
        return self.listed(_is_file)

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted."""
        return self.listed(_is_folder)

    def listed(self, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        """Return the names of what is ``wanted`` in it, sorted."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if wanted(entry))
        except OSError as error:
            raise SourceError(f"{escape(self.uri)} cannot be listed: {error.strerror}.") from error

    def file(self, name: str) -> LocalFile:
        """Open one file of the folder; raises FormatError when ``name`` points out of it."""
        check_name(self.uri, name)
        return LocalFile(os.path.join(self.path, name), os.path.join(self.uri, name))


class _Local:
    schemes = ("", "file")

    def open(self, uri: str) -> Source:
        path = uri.removeprefix("file://")
        if os.path.isdir(path):
            return LocalFolder(path, uri)
        if not os.path.lexists(path) and os.path.isfile(path + INDEX):
            return LocalFile(path + INDEX, uri + INDEX)
        return LocalFile(path, uri)


def link_of(source: Source) -> str:
    """Return where a file that is a symbolic link points, as the link says it; '' for any other."""
    if not isinstance(source, LocalFile):
        return ""
    try:
        return os.readlink(source.path)
    except OSError:
        return ""


def broken_links(source: Source) -> list[str]:
    """Return the names of the links in a folder whose targets do not exist, sorted, which ``names`` leaves out."""
    return source.listed(_is_broken) if isinstance(source, LocalFolder) else []


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _open_regular(path: str, uri: str) -> int:
    """Open a regular file; anything else is refused before it can block or act on being opened."""
    try:
        _must_be_regular(os.stat(path), uri)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = _absent(path) if isinstance(error, FileNotFoundError) else f"cannot be opened: {error}"
        if isinstance(error, OSError) and error.strerror and not isinstance(error, FileNotFoundError):
            why = f"cannot be opened: {error.strerror}"
        raise SourceError(f"{escape(uri)} {why}.") from error
    try:
        _must_be_regular(os.fstat(fd), uri)
    except SourceError:
        os.close(fd)
        raise
    return fd


def _absent(path: str) -> str:
    if os.path.islink(path):
        return f"is a link to {escape(os.readlink(path))}, which does not exist"
    return "does not exist"


def _must_be_regular(found: os.stat_result, uri: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise SourceError(f"{escape(uri)} is {kind}; only regular files are read.")


SOURCE = _Local()
