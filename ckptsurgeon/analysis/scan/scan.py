"""Scans a file or a folder: what reading it would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from ...errors import CheckpointError
from ...storage.read.base import File, Folder
from ...storage.read.remote import notes_of
from ...storage.read.uri import open_source, shown
from ...util.collection import no_collection
from .base.findings import Fault, Finding, Scan
from .judge import look_at
from .walk import Found, far_files_of, files_of

__all__ = ["scan_path"]

Progress = Callable[[int, int], None]


def scan_path(path: str, progress: Progress | None = None) -> Scan:
    """Look at a file, or at every file of a folder. Raises SourceError where there is none that can be read."""
    source = open_source(path)
    if isinstance(source, File):
        with closing(source):
            return Scan(shown(path), 1, source.size, tuple(_look(source.name, source)), notes_of(source))
    found: list[Finding] = []
    skipped: list[str] = []
    nbytes = 0
    listed = _listed(source, path, skipped)
    for number, one in enumerate(listed):
        size, findings = _one(one)
        nbytes += size
        found += findings
        if progress is not None:
            progress(number + 1, len(listed))
    notes = (f"not looked at: {', '.join(skipped)}",) if skipped else ()
    return Scan(shown(path), len(listed), nbytes, tuple(found), notes)


def _listed(source: Folder, path: str, skipped: list[str]) -> list[Found]:
    here = getattr(source, "path", None)
    return list(far_files_of(source, path) if here is None else files_of(here, skipped))


def _one(one: Found) -> tuple[int, list[Finding]]:
    """Return the size of a file of a folder and what was found in it."""
    if one.why:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", one.why))]
    try:
        file = one.open()
    except CheckpointError as error:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", str(error)))]
    with closing(file):
        return file.size, _look(one.path, file)


def _look(path: str, file: File) -> list[Finding]:
    with no_collection():
        return look_at(path, file).found
