"""A journal of the ranges of a file that are on disk: one line each, appended; each carries a checksum of itself."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable

from .._intervals import Range

__all__ = ["Journal"]

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
