"""The contract of a source: what every place that holds bytes must offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias, runtime_checkable

__all__ = ["Advance", "File", "Folder", "Progress", "Source"]

Advance = Callable[[int], None]
"""Called with the number of bytes that have just come, from any thread."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread."""


@runtime_checkable
class File(Protocol):
    """A file of known size, read in ranges. Reading never moves a position, so threads may share it.

    ``uri`` is what the user wrote, less what is secret in it, ``name`` its last part. ``mtime_ns`` is None where there
    is none to tell. ``validator`` is what no other content has, a commit or a strong ETag, '' where nothing says. Of a
    ``remote`` one each read that has not been announced may cost a request.
    """

    uri: str
    name: str
    size: int
    mtime_ns: int | None
    remote: bool
    validator: str

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises SourceError when the file ends before."""
        ...

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError when the file ends before."""
        ...

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Say that these (begin, end) ranges will be read, so that they are fetched together, if they must be.

        ``advance`` is told the bytes that came.
        """
        ...

    def keep(self, wanted: bool) -> None:
        """Say that what is fetched is to outlast this process, or, at the end of a run that went well, no longer."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        ...

    def descriptor(self) -> AbstractContextManager[int | None]:
        """Lend a descriptor that the kernel can copy from, None where there is none; raises SourceError."""
        ...

    def folder(self) -> Folder:
        """Return the folder the file lies in."""
        ...

    def close(self) -> None:
        """Let go of the file; further reads fail."""
        ...


@runtime_checkable
class Folder(Protocol):
    """A folder of files."""

    uri: str
    name: str

    def names(self) -> list[str]:
        """Return the names of the files in it, sorted."""
        ...

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted."""
        ...

    def file(self, name: str) -> File:
        """Open one file of the folder by its plain relative name."""
        ...

    def inside(self, name: str) -> Folder:
        """Return a folder of the folder by its plain relative name; whether it is there, its listing says."""
        ...


Source = File | Folder
