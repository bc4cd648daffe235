"""Finds the records of a remote archive without reading the bytes between them.

The offset of each record's data is computed from the directory alone: the data is followed by the descriptor, and the
descriptor by the next record's header. When bytes of a record are read, its local header and descriptor are read, too,
and checked against the directory by the same rules as for a local file.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter

from ...storage.read.base import Advance, File, Folder
from .records import Listed, RecordOffsets, ZipEntry, check_spot, locate

__all__ = ["RecordsFile", "locate_remote"]

_LOCAL_BYTES = 30
_DESCRIPTOR = 0x8
_DESCRIPTORS = (12, 16, 20, 24)
_EXTRA_MOST = 0xFFFF
_ALIGNED = 64
"""All versions of torch align the data of every record to this many bytes, or to a multiple."""


def locate_remote(file: File, listed: list[Listed], directory: int) -> tuple[File, dict[str, ZipEntry]]:
    """Return the file from which to read the records, and the records by name.

    The returned file checks each record against the directory when the record is read. If the directory does not
    determine the offset of a record's data, all local headers are read and checked now, and ``file`` is returned.
    """
    rows = sorted(listed, key=itemgetter(1))
    ends = [*(row[1] for row in rows[1:]), directory]
    spots = [_spot(row, end) for row, end in zip(rows, ends, strict=True)]
    settled = [spot for spot in spots if spot is not None]
    if len(settled) < len(rows) or (rows and rows[0][1]):
        file.need(_around(rows, directory))
        return file, locate(file, listed, directory)
    entries = {
        row[0]: ZipEntry(row[0], row[1], spot.data, row[2], row[3], row[4], row[5], row[7])
        for row, spot in zip(rows, settled, strict=True)
    }
    return RecordsFile(file, rows, settled), entries


def _spot(row: Listed, end: int) -> RecordOffsets | None:
    """Return the offsets of a record; None if they cannot be computed. The record and its descriptor end at ``end``."""
    name, header, stored, _, _, _, flags, _ = row
    first = header + _LOCAL_BYTES + len(name.encode())
    lengths = _DESCRIPTORS if flags & _DESCRIPTOR else (0,)
    found = [end - length - stored for length in lengths]
    found = [data for data in found if first <= data <= first + _EXTRA_MOST]
    if flags & _DESCRIPTOR:
        found = [data for data in found if data % _ALIGNED == 0]
    return RecordOffsets(header, found[0], found[0] + stored, end) if len(found) == 1 else None


def _around(rows: list[Listed], directory: int) -> list[tuple[int, int]]:
    """Return a byte range (begin, end) around the local header of each record in ``rows``, the directory's entries.

    The range begins before the header, since the descriptor of the previous record may be there. ``directory`` is the
    offset of the directory.
    """
    return [(max(0, row[1] - 24), min(directory, row[1] + _LOCAL_BYTES + len(row[0].encode()) + 64)) for row in rows]


class RecordsFile(File):
    """A file that checks each record once against the directory, before it returns any byte of the record."""

    mtime_ns: int | None = None

    def __init__(self, file: File, rows: list[Listed], spots: list[RecordOffsets]) -> None:
        self.uri, self.name, self.size, self.remote = file.uri, file.name, file.size, file.remote
        self.validator = file.validator
        self._file = file
        self._rows, self._spots = rows, spots
        self._begins = [spot.header for spot in spots]
        self._unseen = set(range(len(rows)))
        self._lock = threading.Lock()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises UnsafeError if a record contradicts the directory.

        Only records that overlap these bytes are checked.
        """
        data = self._file.read(offset, nbytes)
        self._check_records([(offset, offset + nbytes)])
        return data

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on; raises UnsafeError if a record in this range contradicts the directory."""
        self._file.readinto(offset, view)
        self._check_records([(offset, offset + len(view))])

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Fetch (begin, end) ranges with the headers and descriptors of their records, and check these records.

        Raises UnsafeError if a record contradicts the directory.
        """
        wanted = list(ranges)
        frames = [part for at in self._touched(wanted) & self._unseen for part in self._spots[at].frames]
        self._file.need([*frames, *wanted], advance)
        self._check_records(wanted)

    def keep(self, wanted: bool) -> None:
        """Set whether the fetched bytes are kept for the next run."""
        self._file.keep(wanted)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def descriptor(self) -> AbstractContextManager[int | None]:
        """Return a context whose value is a file descriptor, from which the kernel can copy.

        The value is None if some record was not yet checked against the directory: the kernel would copy it without
        this check.
        """
        return nullcontext() if self._unseen else self._file.descriptor()

    def folder(self) -> Folder:
        """Return the folder of the file."""
        return self._file.folder()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_records(self, ranges: list[tuple[int, int]]) -> None:
        """Check the headers and descriptors of the records in the (begin, end) ``ranges`` that were not checked yet."""
        with self._lock:
            fresh = sorted(self._touched(ranges) & self._unseen)
            self._file.need([part for at in fresh for part in self._spots[at].frames])
            for at in fresh:
                check_spot(self._file, self._rows[at], self._spots[at])
                self._unseen.discard(at)

    def _touched(self, ranges: list[tuple[int, int]]) -> set[int]:
        """Return the indices of the records that the (begin, end) ``ranges`` overlap."""
        found: set[int] = set()
        for begin, end in ranges:
            found.update(range(max(0, bisect_right(self._begins, begin) - 1), bisect_left(self._begins, end)))
        return found
