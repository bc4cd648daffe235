"""Reads bytes in the memory of this process through the interface of a file; the bytes are a list of segments."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import NoReturn, Protocol

from ...errors import SourceError
from ...util.text import escape
from .base import Advance, File, Folder

__all__ = ["MemoryFile", "MemorySegment"]


class MemorySegment(Protocol):
    """A contiguous sequence of one or more bytes in memory."""

    nbytes: int

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; the caller guarantees that there are enough bytes."""
        ...


class MemoryFile(File):
    """A file that consists of segments of memory; they are copied only when they are read.

    It has no descriptor and no folder.
    """

    mtime_ns: int | None = None
    remote = False
    validator = ""

    def __init__(self, name: str, pieces: Sequence[MemorySegment]) -> None:
        self.uri = self.name = name
        self._pieces: Sequence[MemorySegment] | None = pieces
        self._begins = [0, *accumulate(piece.nbytes for piece in pieces)]
        self.size = self._begins.pop()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset`` on; raises SourceError if there are fewer."""
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; raises SourceError if there are fewer."""
        if self._pieces is None:
            raise SourceError(f"{escape(self.uri)} is closed.")
        if offset < 0 or offset + len(view) > self.size:
            raise SourceError(
                f"{escape(self.uri)} has only {self.size} bytes: cannot read {len(view)} bytes from byte {offset} on."
            )
        while len(view):
            place = bisect_right(self._begins, offset) - 1
            piece, at = self._pieces[place], offset - self._begins[place]
            length = min(len(view), piece.nbytes - at)
            piece.readinto(at, view[:length])
            offset, view = offset + length, view[length:]

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: the bytes are on this machine."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: the bytes were not fetched."""

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._pieces is None

    def descriptor(self) -> AbstractContextManager[None]:
        """Return a context whose value is None: there is no descriptor from which the kernel could copy."""
        return nullcontext()

    def folder(self) -> Folder:
        """Raise SourceError: bytes in memory have no folder."""
        raise SourceError(f"{escape(self.uri)} is in memory and has no folder.")

    def close(self) -> None:
        """Release the memory."""
        self._pieces = None

    def __copy__(self) -> MemoryFile:
        """Return this object itself: a copy would have to be closed separately."""
        return self

    def __deepcopy__(self, memo: object) -> MemoryFile:
        """Return this object itself, so that the bytes are in memory only once."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{escape(self.uri)} is in memory and cannot be pickled; write it to a file first")
