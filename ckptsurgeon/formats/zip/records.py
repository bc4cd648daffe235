"""Reads the local headers of a zip archive's records, and checks each against the archive's directory.

PKWARE APPNOTE 6.3.10, sections 4.3.7 (local headers), 4.3.9 (data descriptors) and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
from operator import itemgetter
from typing import NamedTuple

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...util.text import escape

__all__ = ["DEFLATED", "FULL", "Listed", "RecordOffsets", "ZipEntry", "check_spot", "locate", "record_at", "wide_sizes"]

_LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR = 0x1, 0x8
FULL = 0xFFFFFFFF
_LONGEST_DESCRIPTOR = 24
_USUAL = struct.Struct("<4s3L4s2x20s2H")
"""The bytes that torch writes between the data of two records, up to the name: a descriptor, and a local header."""
_MAGICS = (b"PK\7\x08", b"PK\3\4")
_USUAL_FLAGS = 0x808
_USUAL_LOCAL = struct.pack("<4H3L", _USUAL_FLAGS, 0, 0, 0, 0, 0, 0)
"""Flags, method, time, checksum and sizes in a local header that torch wrote: all except the flags are zero."""


class ZipEntry(NamedTuple):
    """One record: ``header`` and ``data`` are offsets in the file, ``listed`` is the offset of its directory entry.

    ``stored`` is the number of its bytes in the file, ``size`` the number of bytes after decompression; ``method`` is 0
    if the record is not compressed.
    """

    name: str
    header: int
    data: int
    stored: int
    size: int
    crc32: int
    method: int
    listed: int


Listed = tuple[str, int, int, int, int, int, int, int]


class RecordOffsets(NamedTuple):
    """The offsets of a record's header, its data, the end of its data, and the next header (or the directory)."""

    header: int
    data: int
    end: int
    next: int

    @property
    def frames(self) -> list[tuple[int, int]]:
        """Two byte ranges (begin, end): the record's header, and the bytes between its data and the next header."""
        return [(self.header, self.data), (self.end, self.next)]


def record_at(file: File, name: str) -> str:
    """Return the name of a record for messages: the archive's path, then the record's name."""
    return f"{escape(file.uri)}: record {escape(name)}"


def locate(file: File, listed: list[Listed], directory: int) -> dict[str, ZipEntry]:
    """Return the records in file order, after checking each local header and descriptor against the directory.

    ``listed`` has the entries of the directory, ``directory`` is the offset of the directory. Raises FormatError or
    UnsafeError if a record is damaged, overlaps another, or leaves a gap.
    """
    entries: dict[str, ZipEntry] = {}
    end, previous = 0, None
    window = _Window(file, sum(row[2] for row in listed) // max(1, len(listed)))
    for row in sorted(listed, key=itemgetter(1)):
        name, header, stored, size, crc, method, _, at = row
        if header < end or header + _LOCAL.size + len(name) > directory:
            raise UnsafeError(
                f"{record_at(file, name)} overlaps another record or the zip directory.", rule="zip overlap"
            )
        if header - end > _LONGEST_DESCRIPTOR or (previous is None and header):
            raise UnsafeError(f"{record_at(file, name)} follows bytes that belong to no record.", rule="zip gap")
        raw = name.encode()
        between = window.read(end, header + _LOCAL.size + len(raw) - end)
        extra = _usual_extra(between, previous, row, raw)
        if extra >= 0:
            data = end + len(between) + extra
        else:
            if previous is not None:
                _check_descriptor(file, previous, between[: header - end])
            data = header + _check_local(file, row, between[header - end :])
        if data + stored > directory:
            raise FormatError(f"{record_at(file, name)} reaches into the zip directory.", rule="zip overlap")
        entries[name] = ZipEntry(name, header, data, stored, size, crc, method, at)
        previous, end = row, data + stored
    if previous is not None:
        _check_descriptor(file, previous, file.read(end, min(directory - end, _LONGEST_DESCRIPTOR + 1)))
    return entries


def _usual_extra(between: bytes, previous: Listed | None, row: Listed, name: bytes) -> int:
    """Return the length of the extra field in the local header of ``row``; -1 if torch would not write these bytes.

    ``between`` has the bytes from the end of the data of ``previous`` to the end of ``name``, which is the name of
    ``row`` in UTF-8. This is a quick check for the usual case: both records are stored without compression, with a
    descriptor. For all other cases, ``_check_descriptor`` and ``_check_local`` are used.
    """
    if previous is None or len(between) != _USUAL.size + len(name) or not between.endswith(name):
        return -1
    _, _, before_stored, before_size, before_crc, _, before_flags, _ = previous
    _, _, stored, size, _, method, flags, _ = row
    if not before_flags == flags == _USUAL_FLAGS or method or stored != size:
        return -1
    descriptor, crc, stored, size, local, zeros, length, extra = _USUAL.unpack_from(between)
    found = (descriptor, local, zeros, crc, stored, size, length)
    return extra if found == (*_MAGICS, _USUAL_LOCAL, before_crc, before_stored, before_size, len(name)) else -1


def check_spot(file: File, row: Listed, spot: RecordOffsets) -> None:
    """Raise UnsafeError if a record's local header or descriptor contradicts the directory or the offsets in ``spot``.

    ``row`` is the record's entry in the directory.
    """
    name = row[0]
    raw = file.read(spot.header, _LOCAL.size + len(name.encode()))
    if spot.header + _check_local(file, row, raw) != spot.data:
        raise UnsafeError(
            f"{record_at(file, name)} does not begin at the offset that follows from the zip directory.", rule="zip gap"
        )
    _check_descriptor(file, row, file.read(spot.end, spot.next - spot.end))


class _Window:
    """Reads ahead, so that many small records need only one system call."""

    def __init__(self, file: File, mean: int) -> None:
        self._file = file
        self._ahead = 1 << 18 if mean < 4096 else 0
        self._start, self._data = 0, b""

    def read(self, offset: int, nbytes: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + nbytes > len(self._data):
            if not self._ahead:
                return self._file.read(offset, nbytes)
            self._start, at = offset, 0
            self._data = self._file.read(offset, min(max(nbytes, self._ahead), self._file.size - offset))
        return self._data[at : at + nbytes]


def _check_local(file: File, row: Listed, raw: bytes) -> int:
    """Return the length of a record's local header, whose bytes are ``raw``.

    Raises UnsafeError or FormatError if the header contradicts ``row``, the record's entry in the directory.
    """
    name, header, stored, size, crc, method, flags, _ = row
    magic, _, local_flags, local_method, _, _, local_crc, local_stored, local_size, n, extra = _LOCAL.unpack_from(raw)
    if magic != b"PK\3\4":
        raise UnsafeError(
            f"{record_at(file, name)} does not begin with a local header where the directory says.",
            rule="zip local header",
        )
    if raw[_LOCAL.size :] != name.encode() or n != len(raw) - _LOCAL.size:
        raise UnsafeError(
            f"{record_at(file, name)} has another name in its local header than in the directory.",
            rule="zip local header",
        )
    if (flags ^ local_flags) & _DESCRIPTOR:
        raise UnsafeError(
            f"{record_at(file, name)} has other flags in its local header than in the directory.",
            rule="zip local header",
        )
    if (flags | local_flags) & _ENCRYPTED:
        raise FormatError(f"{record_at(file, name)} is encrypted.", rule="zip encryption")
    if method not in (STORED, DEFLATED):
        raise UnsafeError(
            f"{record_at(file, name)} has an unsupported compression method: {method}.", rule="zip method"
        )
    if local_method != method:
        raise UnsafeError(
            f"{record_at(file, name)} has another compression method in its local header than in the directory.",
            rule="zip local header",
        )
    if method == STORED and stored != size:
        raise UnsafeError(
            f"{record_at(file, name)} has two different sizes, but is not compressed.", rule="zip local header"
        )
    unknown = (0, 0, 0) if local_flags & _DESCRIPTOR else None
    local = (local_crc, local_stored, local_size)
    wide = tuple(min(value, FULL) for value in (stored, size))
    if local[1:] == (FULL, FULL) and local_crc == crc:
        fields = file.read(header + len(raw), extra)
        agrees = wide_sizes(file, fields, FULL, FULL, header)[:2] == (size, stored)
    else:
        agrees = local in ((crc, *wide), unknown)
    if not agrees:
        raise UnsafeError(
            f"{record_at(file, name)} has other sizes or another checksum in its local header than in the directory.",
            rule="zip local header",
        )
    return int(_LOCAL.size + n + extra)


def _check_descriptor(file: File, row: Listed, gap: bytes) -> None:
    """Raise UnsafeError if ``gap``, the bytes after a record's data, is not the descriptor that the record must have.

    The descriptor follows from ``row``, the record's entry in the directory.
    """
    name, _, stored, size, crc, _, flags, _ = row
    if not flags & _DESCRIPTOR:
        if gap:
            raise UnsafeError(f"{record_at(file, name)} is followed by bytes that belong to no record.", rule="zip gap")
        return
    body = gap.removeprefix(b"PK\7\x08")
    form = {12: "<3L", 20: "<L2Q"}.get(len(body))
    if form is None or struct.unpack(form, body) != (crc, stored, size):
        raise UnsafeError(
            f"the data of {record_at(file, name)} is not followed by the data descriptor that the directory of the zip "
            "states: its checksum and its two sizes.",
            rule="zip descriptor",
        )


def wide_sizes(file: File, extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Return (size, stored, header): the record's size, its size in the file, and the offset of its header.

    The arguments are the 32-bit fields of the directory. A value that does not fit in 32 bits is read from the zip64
    field in ``extra``; raises FormatError if it is missing there.
    """
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            number = min(length, 24, len(extra) - at - 4) // 8
            values = iter(struct.unpack_from(f"<{number}Q", extra, at + 4))
            wide = [next(values, -1) if value == FULL else value for value in (size, stored, header)]
            if min(wide) < 0:
                break
            return wide[0], wide[1], wide[2]
        at += 4 + length
    raise FormatError(f"{escape(file.uri)} lacks a zip64 field that it needs.", rule="zip64")
