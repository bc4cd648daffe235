"""Defines the interfaces of a source of bytes: File and Folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeAlias

__all__ = ["Advance", "File", "Folder", "Progress", "Source"]

Advance = Callable[[int], None]
"""A function that is called, from any thread, with the number of bytes that were just received."""
Progress: TypeAlias = Callable[[int, int], None]
"""A function that is called, from any thread, with (bytes done, bytes in total)."""


class File(ABC):
    """A file of known size, read in ranges. Threads may share it, since reading moves no file position.

    ``uri`` is the path or address that the user gave, without secrets; ``name`` is its last part. ``mtime_ns`` is None
    if unknown. ``validator`` identifies the content (a commit or a strong ETag), '' if there is none. Each read of a
    ``remote`` file may cost a request, unless ``need`` has announced the bytes.
    """

    uri: str
    name: str
    size: int
    mtime_ns: int | None
    remote: bool
    validator: str

    @abstractmethod
    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises SourceError if the file has fewer bytes."""

    @abstractmethod
    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; raises SourceError if the file has fewer bytes."""

    @abstractmethod
    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Announce (begin, end) ranges that will be read, so that a remote file fetches them together.

        ``advance`` is called with the number of bytes received.
        """

    @abstractmethod
    def keep(self, wanted: bool) -> None:
        """Set whether fetched bytes are kept for the next run: True while a run needs them, False after its success."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether the file was closed."""

    def has_changed(self) -> bool:
        """Return whether the file was written to since it was opened; False if it is not a file on this machine."""
        return False

    @abstractmethod
    def descriptor(self) -> AbstractContextManager[int | None]:
        """Return a context manager that yields a descriptor for reading, or None if no local file has all bytes.

        Raises SourceError.
        """

    @abstractmethod
    def folder(self) -> Folder:
        """Return the folder the file is in."""

    @abstractmethod
    def close(self) -> None:
        """Close the file; further reads fail."""


class Folder(ABC):
    """A folder of files."""

    uri: str
    name: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the subfolders of the folder, sorted."""

    @abstractmethod
    def file(self, name: str) -> File:
        """Open one file of the folder; ``name`` is a relative path without ``..``."""

    @abstractmethod
    def inside(self, name: str) -> Folder:
        """Return the subfolder ``name``, a relative path without ``..``; whether it exists is not checked."""


Source = File | Folder
