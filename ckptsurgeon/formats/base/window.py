"""Reads small ranges of a file from a window in memory, for readers that go through a file piece by piece."""

from __future__ import annotations

from ...storage.read.base import File

__all__ = ["Window"]

_BYTES = 1 << 16


class Window:
    """The bytes of ``file`` around the range that was read last. At least ``size`` bytes are read at once."""

    def __init__(self, file: File, size: int = _BYTES) -> None:
        self.file = file
        self._size = size
        self._begin, self._buffer = 0, b""

    def read(self, at: int, nbytes: int) -> bytes:
        """Return ``nbytes`` bytes from the offset ``at``; the caller guarantees that the file has them."""
        if not self._begin <= at <= at + nbytes <= self._begin + len(self._buffer):
            self._begin, self._buffer = at, self.file.read(at, min(max(nbytes, self._size), self.file.size - at))
        return self._buffer[at - self._begin : at - self._begin + nbytes]
