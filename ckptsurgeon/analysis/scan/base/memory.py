"""Bytes that were unpacked, as a file."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from ....errors import FormatError
from ....storage.read.base import Advance, File, Folder
from ....util.text import escape

__all__ = ["Memory"]


class Memory:
    """Bytes from inside a file, which have no place of their own there."""

    mtime_ns: int | None = None
    remote = False
    validator = ""

    def __init__(self, outer: File, data: bytes) -> None:
        self.uri = outer.uri
        self.name = outer.name
        self.size = len(data)
        self._outer = outer
        self._data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises FormatError beyond the end."""
        if offset < 0 or offset + nbytes > self.size:
            raise FormatError(f"{escape(self.uri)}: a part of it ends too early.", rule="slice")
        return self._data[offset : offset + nbytes]

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises FormatError beyond the end."""
        view[:] = self.read(offset, len(view))

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: what will be read is here."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: it was not fetched."""

    @property
    def closed(self) -> bool:
        """Never: it is somebody else's memory."""
        return False

    def descriptor(self) -> AbstractContextManager[None]:
        """Lend None, since the kernel has nothing to copy from."""
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the file."""
        return self._outer.folder()

    def close(self) -> None:
        """Leave the file open, which is somebody else's."""
