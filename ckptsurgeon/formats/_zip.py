"""Reads the directory of a zip archive and holds it against the archive itself.

PKWARE APPNOTE 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. What torch writes (stored
records, local headers without sizes, a data descriptor behind each record) is normal; what two readers could
read differently is refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from ..errors import FormatError, UnsafeError
from ..sources import File
from ..text import escape
from . import limits

__all__ = ["Archive", "Entry", "read_archive"]

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR = 0x1, 0x8
_FULL = 0xFFFFFFFF
_LONGEST_DESCRIPTOR = 24
_DESCRIPTOR_OF = struct.Struct("<4s3L")
_TORCH_LOCAL = struct.pack("<4H3L", 0x808, 0, 0, 0, 0, 0, 0)
"""Flags, method, time, checksum and sizes of a local header as torch writes it: all but the flags are zero."""


class Entry(NamedTuple):
    """One record: ``header`` and ``data`` are offsets into the file, ``listed`` one into the directory."""

    name: str
    header: int
    data: int
    stored: int
    size: int
    crc32: int
    method: int
    listed: int


@dataclass(frozen=True)
class Archive:
    """An archive's records by name, in file order, and the bytes of its directory."""

    file: File
    entries: dict[str, Entry]
    directory_offset: int
    directory: bytes

    def read(self, name: str, most: int = limits.PICKLE_BYTES) -> bytes:
        """Return one small record, inflated if need be, its checksum checked."""
        entry = self.entries[name]
        if entry.size > most or entry.stored > most:
            raise UnsafeError(f"{_at(self.file, name)} is {entry.size} bytes, over the limit.", rule="record size")
        if entry.size > max(limits.INFLATED_FREE, limits.INFLATED * entry.stored):
            raise UnsafeError(
                f"{_at(self.file, name)} inflates from {entry.stored} bytes to {entry.size}.", rule="deflate bomb"
            )
        data = self.file.read(entry.data, entry.stored)
        if entry.method == _DEFLATED:
            data = _inflate(data, entry.size, _at(self.file, name))
        if entry.crc32 and zlib.crc32(data) != entry.crc32:
            raise FormatError(f"{_at(self.file, name)} does not have the checksum it should.", rule="crc")
        return data


def _at(file: File, name: str) -> str:
    return f"{escape(file.uri)}: record {escape(name)}"


def _inflate(data: bytes, size: int, where: str) -> bytes:
    try:
        inflater = zlib.decompressobj(-15)
        plain = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"{where} cannot be inflated: {error}.", rule="deflate") from None
    if len(plain) != size or not inflater.eof or inflater.unused_data:
        raise FormatError(f"{where} does not inflate to the {size} bytes it claims.", rule="deflate")
    return plain


def read_archive(file: File) -> Archive:
    """Read and check the directory of a zip archive.

    Raises FormatError where the archive contradicts itself, UnsafeError where readers could disagree about it.
    """
    number, size, offset = _find_directory(file)
    directory = file.read(offset, size)
    listed = _listed(file, directory, number)
    _check_names(file, [name for name, *_ in listed])
    return Archive(file, _located(file, listed, offset), offset, directory)


def _find_directory(file: File) -> tuple[int, int, int]:
    """Return (number of entries, bytes, offset) of the central directory."""
    tail_size = min(file.size, _END.size + 0xFFFF + _END64_LOCATOR.size)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise FormatError(f"{escape(file.uri)} is cut short: its zip directory is missing.", rule="zip end")
    _, disk, start_disk, here, number, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise FormatError(f"{escape(file.uri)} has bytes behind its end.", rule="zip end")
    end = file.size - tail_size + at
    narrow = (disk, start_disk, here, number, size, offset)
    located = at >= _END64_LOCATOR.size and tail[at - _END64_LOCATOR.size :][:4] == b"PK\6\7"
    if located:
        where = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)[2]
        wide, end = _end64(file, where, end - _END64_LOCATOR.size), where
        if any(n != w and n not in (0xFFFF, _FULL) for n, w in zip(narrow, wide, strict=True)):
            raise UnsafeError(f"{escape(file.uri)} has two zip directories that disagree.", rule="zip64")
        disk, start_disk, here, number, size, offset = wide
    if disk or start_disk or here != number:
        raise FormatError(f"{escape(file.uri)} is part of a split archive.", rule="zip disks")
    if number > limits.ZIP_ENTRIES or size > limits.ZIP_DIRECTORY_BYTES:
        raise UnsafeError(f"{escape(file.uri)} lists {number} records, over the limit.", rule="zip entries")
    if offset + size != end:
        raise UnsafeError(
            f"{escape(file.uri)} has bytes in front of or behind its zip directory; readers would disagree about it.",
            rule="zip prefix",
        )
    return number, size, offset


def _end64(file: File, where: int, end: int) -> tuple[int, ...]:
    """Return (disk, first disk, entries here, entries, bytes, offset) of the zip64 end record at ``where``."""
    if where + _END64.size != end:
        raise FormatError(f"{escape(file.uri)} has its zip64 directory in the wrong place.", rule="zip64")
    magic, _, _, _, *rest = _END64.unpack(file.read(where, _END64.size))
    if magic != b"PK\6\6":
        raise FormatError(f"{escape(file.uri)} has a broken zip64 directory.", rule="zip64")
    return tuple(rest)


Listed = tuple[str, int, int, int, int, int, int, int]


def _listed(file: File, directory: bytes, number: int) -> list[Listed]:
    """Return (name, header offset, stored, size, crc, method, flags, place in the directory) of each entry."""
    found: list[Listed] = []
    at, end = 0, len(directory)
    unpack, size_of = _CENTRAL.unpack_from, _CENTRAL.size
    for _ in range(number):
        if at + size_of > end:
            raise FormatError(f"{escape(file.uri)} has a zip directory that is cut short.", rule="zip directory")
        (magic, _, _, flags, method, _, _, crc, stored, size, n, extra, comment, disk, _, _, header) = unpack(
            directory, at
        )
        if magic != b"PK\1\2" or disk not in (0, 0xFFFF):
            raise FormatError(f"{escape(file.uri)} has a broken zip directory.", rule="zip directory")
        raw = directory[at + size_of : at + size_of + n]
        after = at + size_of + n
        if stored == _FULL or size == _FULL or header == _FULL:
            fields = directory[after : after + extra]
            size, stored, header = _wide(file, fields, size, stored, header)
        found.append((_name(file, raw), header, stored, size, crc, method, flags, at))
        at = after + extra + comment
    if at != end:
        raise FormatError(f"{escape(file.uri)} has a zip directory of the wrong length.", rule="zip directory")
    return found


def _wide(file: File, extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Read the zip64 field, which holds only those values that did not fit in 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{min(length, 24) // 8}Q", extra, at + 4))
            wide = [next(values, -1) if value == _FULL else value for value in (size, stored, header)]
            if min(wide) < 0:
                break
            return wide[0], wide[1], wide[2]
        at += 4 + length
    raise FormatError(f"{escape(file.uri)} lacks a zip64 field that it needs.", rule="zip64")


def _name(file: File, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{escape(file.uri)} has a record whose name is no UTF-8.", rule="zip name") from None


def _check_names(file: File, names: list[str]) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise UnsafeError(f"{_at(file, name)} points outside the archive.", rule="zip name")
        same = name.casefold()
        other = folded.get(same)
        if other is not None:
            how = "twice" if other == name else f"beside {escape(other)}"
            raise UnsafeError(f"{_at(file, name)} is there {how}; readers would disagree.", rule="zip duplicate")
        folded[same] = name


def _located(file: File, listed: list[Listed], directory: int) -> dict[str, Entry]:
    """Walk the records in file order, hold each local header and descriptor against the directory."""
    entries: dict[str, Entry] = {}
    end, previous = 0, None
    window = _Window(file, sum(row[2] for row in listed) // max(1, len(listed)))
    for row in sorted(listed, key=itemgetter(1)):
        name, header, stored, size, crc, method, flags, at = row
        if header < end or header + _LOCAL.size + len(name) > directory:
            raise UnsafeError(f"{_at(file, name)} overlaps another.", rule="zip overlap")
        if header - end > _LONGEST_DESCRIPTOR or (previous is None and header):
            raise UnsafeError(f"{_at(file, name)} lies behind bytes of no record.", rule="zip gap")
        raw_name = name.encode()
        head = window.read(end, header + _LOCAL.size + len(raw_name) - end)
        if previous is not None:
            _check_descriptor(file, previous, head[: header - end])
            head = head[header - end :]
        if _as_torch_writes(head, raw_name) and flags & _DESCRIPTOR and not method and stored == size:
            data = header + len(head) + int.from_bytes(head[28:30], "little")
        else:
            data = header + _check_local(file, row, head)
        if data + stored > directory:
            raise FormatError(f"{_at(file, name)} reaches beyond its place.", rule="zip overlap")
        entries[name] = Entry(name, header, data, stored, size, crc, method, at)
        previous, end = row, data + stored
    if previous is not None:
        _check_descriptor(file, previous, file.read(end, min(directory - end, _LONGEST_DESCRIPTOR + 1)))
    return entries


def _as_torch_writes(head: bytes, name: bytes) -> bool:
    """Whether a local header is just what torch writes for a stored record, the quick and usual case."""
    return (
        head[6:26] == _TORCH_LOCAL
        and head[:4] == b"PK\3\4"
        and head[30:] == name
        and head[26] | head[27] << 8 == len(name)
    )


class _Window:
    """Reads ahead where records are so small that the kernel is asked for many in one go."""

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
    """Return the length of a local header that agrees with its directory entry."""
    name, header, stored, size, crc, method, flags, _ = row
    magic, _, local_flags, local_method, _, _, local_crc, local_stored, local_size, n, extra = _LOCAL.unpack_from(raw)
    if magic != b"PK\3\4" or raw[_LOCAL.size :] != name.encode() or n != len(raw) - _LOCAL.size:
        raise UnsafeError(f"{_at(file, name)} has another name where it lies.", rule="zip local header")
    if (flags ^ local_flags) & _DESCRIPTOR:
        raise UnsafeError(f"{_at(file, name)} has other flags where it lies.", rule="zip local header")
    if (flags | local_flags) & _ENCRYPTED:
        raise FormatError(f"{_at(file, name)} is encrypted.", rule="zip encryption")
    if method not in (_STORED, _DEFLATED) or local_method != method or (method == _STORED and stored != size):
        raise UnsafeError(f"{_at(file, name)} is compressed in a way that is not read.", rule="zip method")
    unknown = (0, 0, 0) if local_flags & _DESCRIPTOR else None
    local = (local_crc, local_stored, local_size)
    wide = tuple(min(value, _FULL) for value in (stored, size))
    if local[1:] == (_FULL, _FULL) and local_crc == crc:
        fields = file.read(header + len(raw), extra)
        agrees = _wide(file, fields, _FULL, _FULL, header)[:2] == (size, stored)
    else:
        agrees = local in ((crc, *wide), unknown)
    if not agrees:
        raise UnsafeError(
            f"{_at(file, name)} has other sizes or another checksum where it lies.", rule="zip local header"
        )
    return int(_LOCAL.size + n + extra)


def _check_descriptor(file: File, row: Listed, gap: bytes) -> None:
    """Hold what lies between a record and the next against the record's directory entry."""
    name, _, stored, size, crc, _, flags, _ = row
    if not flags & _DESCRIPTOR:
        if gap:
            raise UnsafeError(f"{_at(file, name)} is followed by {len(gap)} bytes of no record.", rule="zip gap")
        return
    if gap == _DESCRIPTOR_OF.pack(b"PK\7\x08", crc, stored & _FULL, size & _FULL) and size < _FULL:
        return
    body = gap.removeprefix(b"PK\7\x08")
    form = {12: "<3L", 20: "<L2Q"}.get(len(body))
    if form is None or struct.unpack(form, body) != (crc, stored, size):
        raise UnsafeError(f"{_at(file, name)} has a descriptor that contradicts it.", rule="zip descriptor")
