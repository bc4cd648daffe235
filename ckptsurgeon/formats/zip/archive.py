"""Reads the directory of a zip archive, and checks it against the archive's records.

PKWARE APPNOTE 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. The archives that torch writes are
accepted: records without compression, local headers without sizes, and a data descriptor after each record. An archive
that two readers could interpret differently is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...util.text import escape
from ..base import limits
from ..base.header import UNSEALED, seal_of
from .records import DEFLATED, FULL, Listed, ZipEntry, locate, record_at, wide_sizes
from .remote import locate_remote

__all__ = [
    "EXPORT_MARK",
    "EXPORT_OLD",
    "Archive",
    "ZipEntry",
    "is_of_export",
    "is_of_torch",
    "names_in",
    "read_archive",
]

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4x2H4x3L4H6xL")


@dataclass(frozen=True)
class Archive:
    """A zip archive: ``entries`` has its records by name, in file order; ``directory`` has the directory's bytes."""

    file: File
    entries: dict[str, ZipEntry]
    directory_offset: int
    directory: bytes

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the bytes of one small record, decompressed; raises FormatError if its checksum is wrong.

        Raises UnsafeError if the record has more than ``most`` bytes; the default is ``limits.PICKLE_BYTES``.
        """
        entry = self.entries[name]
        most = limits.PICKLE_BYTES if most is None else most
        if entry.size > most or entry.stored > most:
            raise UnsafeError(
                f"{record_at(self.file, name)} has {max(entry.size, entry.stored)} bytes, more than the limit of "
                f"{most}.",
                rule="record size",
            )
        if entry.size > max(limits.INFLATED_FREE, limits.INFLATED * entry.stored):
            raise UnsafeError(
                f"{record_at(self.file, name)} would unpack from {entry.stored} bytes to {entry.size}, over "
                f"{limits.INFLATED} times as many.",
                rule="deflate bomb",
            )
        data = self.file.read(entry.data, entry.stored)
        if entry.method == DEFLATED:
            data = _inflate(data, entry.size, record_at(self.file, name))
        if entry.crc32 and zlib.crc32(data) != entry.crc32:
            raise FormatError(f"{record_at(self.file, name)} does not match its checksum.", rule="crc")
        return data

    def without_seal(self, name: str, recipe: str) -> list[tuple[int, bytes]]:
        """Return the changes, as (offset, bytes), that replace the seal of a recipe in the file by zeros.

        ``recipe`` is the text of the record ``name``; the seal is a digest at its end. The checksum of the record
        changes, too. Returns [] if the recipe has no seal.
        """
        sealed = seal_of(recipe)
        if not sealed:
            return []
        entry = self.entries[name]
        plain = recipe.replace(sealed, UNSEALED, 1).encode()
        crc = zlib.crc32(plain).to_bytes(4, "little")
        return [(entry.header + 14, crc), (entry.data, plain), (self.directory_offset + entry.listed + 16, crc)]


def _inflate(data: bytes, size: int, where: str) -> bytes:
    try:
        inflater = zlib.decompressobj(-15)
        plain = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"{where} cannot be unpacked: {error}.", rule="deflate") from None
    if len(plain) != size or not inflater.eof or inflater.unused_data:
        raise FormatError(f"{where} does not unpack to the {size} bytes that it claims.", rule="deflate")
    return plain


def read_archive(file: File) -> Archive:
    """Return a zip archive, with its directory checked.

    The local headers of a remote archive are not read now: ``file`` of the returned Archive checks the header of each
    record against the directory when the record is read.

    Raises FormatError if the archive contradicts itself, UnsafeError if two readers could interpret it differently.
    """
    number, size, offset = _find_directory(file)
    directory = file.read(offset, size)
    listed = _listed(file, directory, number)
    _check_names(file, [name for name, *_ in listed])
    if file.remote:
        file, entries = locate_remote(file, listed, offset)
    else:
        entries = locate(file, listed, offset)
    return Archive(file, entries, offset, directory)


def names_in(file: File) -> list[str]:
    """Return the names of the records in an archive's directory; raises FormatError if the directory is damaged."""
    number, size, offset = _find_directory(file)
    return [name for name, *_ in _listed(file, file.read(offset, size), number)]


def is_of_torch(names: Iterable[str]) -> bool:
    """Return whether torch wrote an archive with these records: one is ``data.pkl``, at the top or in a folder."""
    return any(name.count("/") <= 1 and f"/{name}".endswith("/data.pkl") for name in names)


EXPORT_MARK = "archive_format"
"""A record that archives of ``torch.export`` have, in their only folder."""
EXPORT_OLD = "serialized_exported_program.json"
"""A record that archives of ``torch.export`` of torch 2.6 and older have."""


def is_of_export(names: Iterable[str]) -> bool:
    """Return whether ``torch.export`` wrote an archive with these records."""
    return any(name == EXPORT_OLD or (name.count("/") == 1 and name.endswith(f"/{EXPORT_MARK}")) for name in names)


def _find_directory(file: File) -> tuple[int, int, int]:
    """Return (number of entries, size in bytes, offset) of the central directory.

    Raises FormatError if it is missing or damaged, UnsafeError if it exceeds a limit or is ambiguous.
    """
    tail_size = min(file.size, _END.size + 0xFFFF + _END64_LOCATOR.size)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise FormatError(f"{escape(file.uri)} is truncated: the zip directory at its end is missing.", rule="zip end")
    _, disk, start_disk, here, number, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise FormatError(f"{escape(file.uri)} has bytes after the end of the zip archive.", rule="zip end")
    end = file.size - tail_size + at
    narrow = (disk, start_disk, here, number, size, offset)
    located = at >= _END64_LOCATOR.size and tail[at - _END64_LOCATOR.size :][:4] == b"PK\6\7"
    if located:
        where = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)[2]
        wide, end = _end64(file, where, end - _END64_LOCATOR.size), where
        if any(n != w and n not in (0xFFFF, FULL) for n, w in zip(narrow, wide, strict=True)):
            raise UnsafeError(f"{escape(file.uri)} has two zip directories that contradict each other.", rule="zip64")
        disk, start_disk, here, number, size, offset = wide
    if disk or start_disk or here != number:
        raise FormatError(f"{escape(file.uri)} is part of a split archive.", rule="zip disks")
    if number > limits.ZIP_ENTRIES:
        raise UnsafeError(
            f"{escape(file.uri)} lists {number} records, more than the limit of {limits.ZIP_ENTRIES}.",
            rule="zip entries",
        )
    if size > limits.ZIP_DIRECTORY_BYTES:
        raise UnsafeError(
            f"{escape(file.uri)} has a zip directory of {size} bytes, more than the limit of "
            f"{limits.ZIP_DIRECTORY_BYTES}.",
            rule="zip entries",
        )
    if offset + size != end:
        raise UnsafeError(
            f"{escape(file.uri)} has extra bytes around its zip directory, so readers could interpret it differently.",
            rule="zip prefix",
        )
    return number, size, offset


def _end64(file: File, where: int, end: int) -> tuple[int, ...]:
    """Return the zip64 end record at ``where``: (disk, first disk, entries on this disk, entries, bytes, offset).

    Raises FormatError if the record is damaged, or does not end exactly at the offset ``end``.
    """
    if where + _END64.size != end:
        raise FormatError(f"{escape(file.uri)} has its zip64 end record at the wrong position.", rule="zip64")
    magic, _, _, _, *rest = _END64.unpack(file.read(where, _END64.size))
    if magic != b"PK\6\6":
        raise FormatError(f"{escape(file.uri)} has a damaged zip64 end record.", rule="zip64")
    return tuple(rest)


def _listed(file: File, directory: bytes, number: int) -> list[Listed]:
    """Return a tuple for each of the ``number`` entries of the directory.

    A tuple has: name, offset of the local header, size as stored, size after decompression, CRC-32, compression method,
    flags, offset of the entry in the directory. Raises FormatError if the directory is damaged.
    """
    found: list[Listed] = []
    at, end = 0, len(directory)
    unpack, size_of = _CENTRAL.unpack_from, _CENTRAL.size
    try:
        for _ in range(number):
            if at + size_of > end:
                raise FormatError(f"{escape(file.uri)} has a truncated zip directory.", rule="zip directory")
            magic, flags, method, crc, stored, size, n, extra, comment, disk, header = unpack(directory, at)
            if magic != b"PK\1\2" or disk not in (0, 0xFFFF):
                raise FormatError(f"{escape(file.uri)} has a damaged zip directory.", rule="zip directory")
            after = at + size_of + n
            name = directory[at + size_of : after].decode()
            if stored == FULL or size == FULL or header == FULL:
                fields = directory[after : after + extra]
                size, stored, header = wide_sizes(file, fields, size, stored, header)
            found.append((name, header, stored, size, crc, method, flags, at))
            at = after + extra + comment
    except UnicodeDecodeError:
        raise FormatError(f"{escape(file.uri)} has a record whose name is not UTF-8.", rule="zip name") from None
    if at != end:
        raise FormatError(f"{escape(file.uri)} has a zip directory of the wrong length.", rule="zip directory")
    return found


def _check_names(file: File, names: list[str]) -> None:
    """Raise UnsafeError if a name leads out of the archive or has a backslash or NUL, or if readers could confuse two.

    All names are checked together first. If this check fails, the names are checked one by one, to find the name for
    the message: this takes ten times as long.
    """
    together = "\0".join(["", *names])
    folded = together.casefold().split("\0")
    if any(sign in together for sign in ("\\", "..", "\0/")) or not len(set(folded)) == len(folded) == len(names) + 1:
        _check_each(file, names)


def _check_each(file: File, names: list[str]) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise UnsafeError(
                f"{record_at(file, name)} has a name that leads out of the archive's folder.", rule="zip name"
            )
        if "\\" in name or "\0" in name:
            raise UnsafeError(
                f"{record_at(file, name)} has a name with a backslash or a NUL character, which programs read "
                "differently.",
                hint="Pack the archive again with slashes in the names." if "\\" in name else "",
                rule="zip name",
            )
        same = name.casefold()
        other = folded.get(same)
        if other is not None:
            how = "occurs twice" if other == name else f"differs from {escape(other)} only in case"
            raise UnsafeError(
                f"{record_at(file, name)} {how}, so two programs could read different records.",
                hint=""
                if other == name
                else "Load the file with the program that wrote it, and save it with names "
                "that do not differ only in case, or as safetensors.",
                rule="zip duplicate",
            )
        folded[same] = name
