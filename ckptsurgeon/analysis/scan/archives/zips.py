"""Scans zip archives (of torch, numpy, Keras and others): each record by its content, not by its name in the archive.

The strict zip reader of ``formats`` refuses an archive that two readers could read differently. An archive that it
accepts is scanned record by record. For any other archive, the refusal is reported as a fault, and every record that
any reader could find in the bytes is scanned: see ``pieces``.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from ....errors import FormatError
from ....formats.base import limits
from ....formats.base.slice import FileSlice
from ....formats.zip.archive import Archive, ZipEntry, read_archive
from ....storage.read.base import File
from ..content.arrays import is_array_of_numbers
from ..content.texts import program_note
from ..context import Budget, InMemoryFile, ScanItem
from ..findings import Fault, Verdict
from ..pickle.pickles import look_at_pickles

__all__ = ["FORMS", "archives_in_turn", "look_at_zip", "pieces"]

# Finds everything that any reader could find in a file with the signatures of a zip archive.

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4x2H4x3L4H6xL")
_END_SIZE = 22
_STEP = 4 << 20
_STORED, _DEFLATED = 0, 8


def archives_in_turn(place: ScanItem) -> list[File]:
    """Return the archives of a file that consists of several valid archives, one after another.

    Returns [] for any other file.
    """
    parts: list[File] = []
    begin = 0
    for end in _marks(place, b"PK\5\6"):
        part = FileSlice(place.file, begin, end + _END_SIZE - begin) if end + _END_SIZE <= place.file.size else None
        if part is not None and _is_whole(part):
            parts.append(part)
            begin = end + _END_SIZE
    return parts if len(parts) > 1 and begin == place.file.size else []


def _is_whole(part: File) -> bool:
    try:
        read_archive(part)
    except FormatError:
        return False
    return True


def _marks(place: ScanItem, mark: bytes) -> Iterator[int]:
    """Yield the offsets of the bytes ``mark``, such as the signature of a zip record, in a file."""
    file, at = place.file, 0
    while at < file.size:
        data = file.read(at, min(_STEP + len(mark) - 1, file.size - at))
        place.state.budget.take("searched", len(data))
        found = data.find(mark)
        while found >= 0 and found < _STEP:
            yield at + found
            found = data.find(mark, found + 1)
        at += _STEP


def pieces(place: ScanItem) -> Iterator[tuple[str, File]]:
    """Yield the name and the unpacked content of each record whose local header is in the file, as far as possible.

    A record that has another name in the archive's central directory is yielded under both names. Raises SpentError
    at the end if there are over ``SCAN_FOUND`` records: the rest is not searched for.
    """
    listed, directory = _listed(place)
    heads = list(islice(_marks(place, b"PK\3\4"), limits.SCAN_FOUND + 1))
    is_cut = max(len(heads), len(directory)) > limits.SCAN_FOUND
    del heads[limits.SCAN_FOUND :]
    ends = sorted([*heads[1:], *directory, place.file.size])
    for head in heads:
        after = ends[bisect_right(ends, head)]
        name, data = _piece(place, head, after, listed.get(head))
        if data is None:
            continue
        yield name, data
        other = listed.get(head, (name, 0, 0))[0]
        if other != name:
            yield f"{name}, listed as {other}", data
    if is_cut:
        raise Budget.spent(f"over {limits.SCAN_FOUND} records")


def _listed(place: ScanItem) -> tuple[dict[int, tuple[str, int, int]], list[int]]:
    """Return the entries of an archive's central directory, and the offsets of these entries in the file.

    The entries map the offset of a record's local header to (name, stored bytes, compression method).
    """
    found = {}
    places = list(islice(_marks(place, b"PK\1\2"), limits.SCAN_FOUND + 1))
    for at in places:
        raw = place.file.read(at, min(_CENTRAL.size + 0xFFFF, place.file.size - at))
        if len(raw) < _CENTRAL.size:
            break
        _, _, method, _, stored, _, length, _, _, _, header = _CENTRAL.unpack_from(raw)
        name = raw[_CENTRAL.size : _CENTRAL.size + length].decode("utf-8", "backslashreplace")
        found[header] = name, stored, method
    return found, places


def _piece(place: ScanItem, head: int, after: int, listed: tuple[str, int, int] | None) -> tuple[str, File | None]:
    raw = place.file.read(head, min(_LOCAL.size + 2 * 0xFFFF, place.file.size - head))
    if len(raw) < _LOCAL.size:
        return "?", None
    _, _, _, method, _, _, _, stored, _, length, extra = _LOCAL.unpack_from(raw)
    name = raw[_LOCAL.size : _LOCAL.size + length].decode("utf-8", "backslashreplace")
    begin = head + _LOCAL.size + length + extra
    size = max(stored, listed[1] if listed else 0) or after - begin
    size = max(0, min(size, place.file.size - begin))
    if method == _DEFLATED or (listed is not None and listed[2] == _DEFLATED):
        return name, InMemoryFile(place.file, _inflated(place, begin, min(size, limits.PICKLE_BYTES)))
    return name, FileSlice(place.file, min(begin, place.file.size), size)


def _inflated(place: ScanItem, begin: int, size: int) -> bytes:
    place.state.budget.take("unpacked", size)
    data = place.file.read(begin, size) if size else b""
    most = max(limits.INFLATED_FREE, limits.INFLATED * len(data))
    try:
        plain = zlib.decompressobj(-15).decompress(data, min(most, place.state.budget.unpacked))
    except zlib.error:
        return data
    place.state.budget.take("unpacked", len(plain))
    return plain


FORMS = ("zip archive", "torch zip", "torchscript")

_PEEK = 4096
_NOT_READ = ("zip method", "zip encryption")
"""Rules of the strict reader; other readers accept archives that break them, so such an archive is not corrupt."""


def look_at_zip(place: ScanItem) -> None:
    """Scan every record of a zip archive, and add the findings to ``place.state``."""
    try:
        archive = read_archive(place.file)
    except FormatError as error:
        _look_at_odd(place, Fault("unreadable" if error.rule in _NOT_READ else "corrupt", error.said))
        return
    _look_at_archive(place, archive)


def _look_at_odd(place: ScanItem, fault: Fault) -> None:
    """Scan a file that cannot be read as one zip archive.

    If it consists of several archives, one after another, as torch.distributed.checkpoint writes them, each archive is
    scanned. If not, ``fault`` is reported, and every record that can be found in the bytes is scanned.
    """
    several = archives_in_turn(place)
    if several:
        place.add("several zip archives", notes=(f"{len(several)} archives, one after another",))
        place.judge_all(place.inside(part, f"archive {i}") for i, part in enumerate(several))
        return
    at = len(place.state.found)
    place.add("zip archive", fault=fault)
    names: list[str] = []
    try:
        place.judge_all(_kept(place, names))
    finally:
        if notes := program_note(names):
            place.state.amend(at, verdict=Verdict.CODE, notes=notes)


def _kept(place: ScanItem, names: list[str]) -> Iterator[ScanItem]:
    """Yield every record that can be found in a broken archive, and add its name to ``names``."""
    for name, content in pieces(place):
        names.append(name)
        yield place.inside(content, name)


def _look_at_archive(place: ScanItem, archive: Archive) -> None:
    names = list(archive.entries)
    root = next((name.removesuffix("data.pkl") for name in names if f"/{name}".endswith("/data.pkl")), None)
    notes = program_note(names)
    form = "zip archive" if root is None else "torchscript" if f"{root}constants.pkl" in names else "torch zip"
    at = len(place.state.found)
    place.add(form, Verdict.CODE if notes else Verdict.PLAIN, notes=notes)
    skipped: set[str] = set()
    if root is not None:
        skipped = {f"{root}data.pkl"}
        pickled = _opened(place, archive, archive.entries[f"{root}data.pkl"])
        found = look_at_pickles(pickled) if pickled is not None else None
        if found is not None:
            skipped |= {f"{root}data/{key}" for key in found.storages}
    rest = (entry for name, entry in archive.entries.items() if name not in skipped and entry.size)
    parts = place.judge_all(_opened_all(place, archive, rest))
    place.state.amend(at, parts=parts + len(skipped))


def _opened_all(place: ScanItem, archive: Archive, entries: Iterator[ZipEntry]) -> Iterator[ScanItem]:
    for entry in entries:
        opened = _opened(place, archive, entry)
        if opened is not None:
            yield opened


def _opened(place: ScanItem, archive: Archive, entry: ZipEntry) -> ScanItem | None:
    """Return the item to scan for a record, unpacked if it is compressed; None if there is nothing to scan.

    There is nothing to scan in a compressed array of numbers. A record that cannot be unpacked is reported as a fault.
    """
    if not entry.method:
        return place.inside(FileSlice(archive.file, entry.data, entry.size), entry.name)
    if is_array_of_numbers(_peeked(archive, entry)):
        return None
    try:
        place.state.budget.take("unpacked", entry.size)
        return place.unpacked(archive.read(entry.name, limits.PICKLE_BYTES), entry.name)
    except FormatError as error:
        place.inside(place.file, entry.name).add("zip record", fault=Fault("unreadable", error.said))
        return None


def _peeked(archive: Archive, entry: ZipEntry) -> bytes:
    """Return the first bytes of a compressed record, unpacked; b'' if it is damaged."""
    try:
        return zlib.decompressobj(-15).decompress(archive.file.read(entry.data, min(_PEEK, entry.stored)), _PEEK)
    except zlib.error:
        return b""
