"""Zip archives: torch's, numpy's, Keras', and any other, each record by its content.

What the strict reader of ``formats`` takes is looked at record by record. What it refuses, since two readers could read
it differently, is said; then everything that any reader could find in it is looked at: ``zip_pieces``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ....errors import FormatError
from ....formats.base import limits
from ....formats.base.slice import FileSlice
from ....formats.zip.archive import Archive, Entry, read_archive
from ..base.context import Place
from ..base.findings import Fault, Verdict
from ..content.arrays import is_array_of_numbers
from ..content.texts import program_note
from ..pickle.pickles import look_at_pickles
from .zip_pieces import archives_in_turn, pieces

__all__ = ["FORMS", "look_at_zip"]

FORMS = ("zip archive", "torch zip", "torchscript")

_PEEK = 4096
_NOT_READ = ("zip method", "zip encryption")
"""The rules of archives that others can read."""


def look_at_zip(place: Place) -> None:
    """Look at every record of an archive."""
    try:
        archive = read_archive(place.file)
    except FormatError as error:
        _look_at_odd(place, Fault("unreadable" if error.rule in _NOT_READ else "corrupt", str(error)))
        return
    _look_at_archive(place, archive)


def _look_at_odd(place: Place, fault: Fault) -> None:
    """Look at archives one behind the other, as DCP keeps them, or at whatever can be found in a contradictory one."""
    several = archives_in_turn(place)
    if several:
        place.add("zip archives in turn", notes=(f"{len(several)} archives one behind the other",))
        place.judge_all(place.inside(part, f"archive {i}") for i, part in enumerate(several))
        return
    at = len(place.look.found)
    place.add("zip archive", fault=fault)
    names: list[str] = []
    place.judge_all(_kept(place, names))
    notes = program_note(names)
    if notes:
        place.look.amend(at, verdict=Verdict.CODE, notes=notes)


def _kept(place: Place, names: list[str]) -> Iterator[Place]:
    """Yield the records that can be found, and keep their names."""
    for name, content in pieces(place):
        names.append(name)
        yield place.inside(content, name)


def _look_at_archive(place: Place, archive: Archive) -> None:
    names = list(archive.entries)
    root = next((name.removesuffix("data.pkl") for name in names if f"/{name}".endswith("/data.pkl")), None)
    notes = program_note(names)
    form = "zip archive" if root is None else "torchscript" if f"{root}constants.pkl" in names else "torch zip"
    at = len(place.look.found)
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
    place.look.amend(at, parts=parts + len(skipped))


def _opened_all(place: Place, archive: Archive, entries: Iterator[Entry]) -> Iterator[Place]:
    for entry in entries:
        opened = _opened(place, archive, entry)
        if opened is not None:
            yield opened


def _opened(place: Place, archive: Archive, entry: Entry) -> Place | None:
    """Return the place of a record; None where there is nothing to look at, or it cannot be unpacked, which is said."""
    if not entry.method:
        return place.inside(FileSlice(archive.file, entry.data, entry.size), entry.name)
    if is_array_of_numbers(_peeked(archive, entry)):
        return None
    try:
        place.look.budget.take("unpacked", entry.size)
        return place.unpacked(archive.read(entry.name, limits.PICKLE_BYTES), entry.name)
    except FormatError as error:
        place.inside(place.file, entry.name).add("zip record", fault=Fault("unreadable", str(error)))
        return None


def _peeked(archive: Archive, entry: Entry) -> bytes:
    """Return how a compressed record begins; nothing where it is damaged."""
    try:
        return zlib.decompressobj(-15).decompress(archive.file.read(entry.data, min(_PEEK, entry.stored)), _PEEK)
    except zlib.error:
        return b""
