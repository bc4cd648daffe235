"""The records of an archive that lies far away, found without reading what lies between them.

Where each record's data begins is worked out from the directory: a record reaches up to what its successor's header
leaves for a descriptor. The local header and the descriptor of a record are read and held against the directory, by
the same rules as those of a file on this machine, when anything of the record is.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter

from ...storage.read.base import Advance, File, Folder
from .records import Entry, Listed, Spot, check_spot, locate

__all__ = ["RecordsFile", "locate_remote"]

_LOCAL_BYTES = 30
_DESCRIPTOR = 0x8
_DESCRIPTORS = (12, 16, 20, 24)
_EXTRA_MOST = 0xFFFF
_ALIGNED = 64
"""torch has begun the data of every record at a multiple of this, or of a multiple of it, since the format exists."""


def locate_remote(file: File, listed: list[Listed], directory: int) -> tuple[File, dict[str, Entry]]:
    """Return the records, and the file to read them from, which holds each against the directory as it is read.

    Where the directory does not settle where a record begins, all are looked at where they lie.
    """
    rows = sorted(listed, key=itemgetter(1))
    ends = [*(row[1] for row in rows[1:]), directory]
    spots = [_spot(row, end) for row, end in zip(rows, ends, strict=True)]
    settled = [spot for spot in spots if spot is not None]
    if len(settled) < len(rows) or (rows and rows[0][1]):
        file.need(_around(rows, directory))
        return file, locate(file, listed, directory)
    entries = {
        row[0]: Entry(row[0], row[1], spot.data, row[2], row[3], row[4], row[5], row[7])
        for row, spot in zip(rows, settled, strict=True)
    }
    return RecordsFile(file, rows, settled), entries


def _spot(row: Listed, end: int) -> Spot | None:
    """Return where the data of a record lies that is over at ``end``, None where the directory leaves it open."""
    name, header, stored, _, _, _, flags, _ = row
    first = header + _LOCAL_BYTES + len(name.encode())
    lengths = _DESCRIPTORS if flags & _DESCRIPTOR else (0,)
    found = [end - length - stored for length in lengths]
    found = [data for data in found if first <= data <= first + _EXTRA_MOST]
    if flags & _DESCRIPTOR:
        found = [data for data in found if data % _ALIGNED == 0]
    return Spot(header, found[0], found[0] + stored, end) if len(found) == 1 else None


def _around(rows: list[Listed], directory: int) -> list[tuple[int, int]]:
    """Return the ranges in which the local headers lie, with what is in front of them."""
    return [(max(0, row[1] - 24), min(directory, row[1] + _LOCAL_BYTES + len(row[0].encode()) + 64)) for row in rows]


class RecordsFile:
    """A file whose records are held against the directory, each once, before anything of them is given out."""

    mtime_ns: int | None = None

    def __init__(self, file: File, rows: list[Listed], spots: list[Spot]) -> None:
        self.uri, self.name, self.size, self.remote = file.uri, file.name, file.size, file.remote
        self.validator = file.validator
        self._file = file
        self._rows, self._spots = rows, spots
        self._begins = [spot.header for spot in spots]
        self._unseen = set(range(len(rows)))
        self._lock = threading.Lock()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes; raises UnsafeError where a record there is not what the directory says."""
        data = self._file.read(offset, nbytes)
        self._look([(offset, offset + nbytes)])
        return data

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``; raises as ``read``."""
        self._file.readinto(offset, view)
        self._look([(offset, offset + len(view))])

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Fetch ranges together with what frames the records they lie in; raises as ``read``."""
        wanted = list(ranges)
        frames = [part for at in self._touched(wanted) & self._unseen for part in self._spots[at].frames]
        self._file.need([*frames, *wanted], advance)
        self._look(wanted)

    def keep(self, wanted: bool) -> None:
        """Say whether what was fetched is to outlast this process."""
        self._file.keep(wanted)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def descriptor(self) -> AbstractContextManager[int | None]:
        """Lend a descriptor once every record was looked at."""
        return nullcontext() if self._unseen else self._file.descriptor()

    def folder(self) -> Folder:
        """Return the folder the file lies in."""
        return self._file.folder()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _look(self, ranges: list[tuple[int, int]]) -> None:
        """Hold what frames the records of these ranges against the directory, where that was not done yet."""
        with self._lock:
            fresh = sorted(self._touched(ranges) & self._unseen)
            self._file.need([part for at in fresh for part in self._spots[at].frames])
            for at in fresh:
                check_spot(self._file, self._rows[at], self._spots[at])
                self._unseen.discard(at)

    def _touched(self, ranges: list[tuple[int, int]]) -> set[int]:
        """Return the numbers of the records that ranges lie in."""
        found: set[int] = set()
        for begin, end in ranges:
            found.update(range(max(0, bisect_right(self._begins, begin) - 1), bisect_left(self._begins, end)))
        return found
