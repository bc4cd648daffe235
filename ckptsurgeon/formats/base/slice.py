"""A part of a file that is a file of its own: formats that keep archives one behind the other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from ...errors import FormatError
from ...storage.read.base import Advance, File, Folder
from ...util.text import escape

__all__ = ["FileSlice"]

_KEPT = 64 << 10
"""A part of at most this many bytes is read once and kept, since a reader asks for it piece by piece."""


class FileSlice:
    """``size`` bytes of a file from ``start``; raises FormatError where the file has not as many."""

    mtime_ns: int | None = None
    validator = ""
    remote = False
    """A part is small, or two reads away: its head and its tail."""

    def __init__(self, file: File, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > file.size:
            raise FormatError(
                f"{escape(file.uri)} has {file.size} bytes; a part of {size} from {start} is said to be there.",
                rule="slice",
            )
        self.uri = file.uri
        self.name = file.name
        self.size = size
        self._file = file
        self._start = start
        self._kept = file.read(start, size) if size <= _KEPT else None

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises FormatError beyond the end."""
        self._check(offset, nbytes)
        if self._kept is not None:
            return self._kept[offset : offset + nbytes]
        return self._file.read(self._start + offset, nbytes)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises FormatError beyond the end."""
        self._check(offset, len(view))
        self._file.readinto(self._start + offset, view)

    def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise FormatError(f"{escape(self.uri)}: a part of it ends too early.", rule="slice")

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Say what will be read of the part."""
        self._file.need([(self._start + begin, self._start + end) for begin, end in ranges], advance)

    def keep(self, wanted: bool) -> None:
        """Say it of the whole file."""
        self._file.keep(wanted)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def descriptor(self) -> AbstractContextManager[None]:
        """Lend None, since the kernel would copy from the start of the file."""
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the file."""
        return self._file.folder()

    def close(self) -> None:
        """Leave the file open, which is somebody else's."""
