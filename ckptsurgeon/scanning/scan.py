"""Scans a file or a folder: what reading it would do, without doing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

from ..collection import no_collection
from ..errors import CheckpointError
from ..sources import File, Folder, notes_of, open_source, shown
from .findings import Fault, Finding, Scan
from .judge import look_at
from .walk import Found, files_at, files_of

__all__ = ["scan_path"]

Progress = Callable[[int, int], None]


def scan_path(path: str, progress: Progress | None = None) -> Scan:
    """Look at a file, or at every file of a folder. Raises SourceError where there is none that can be read."""
    source = open_source(path)
    if isinstance(source, File):
        with closing(source):
            return Scan(shown(path), 1, source.size, tuple(_look(source.name, source)), notes_of(source))
    found: list[Finding] = []
    nbytes = 0
    root = getattr(source, "path", "")
    listed = list(files_of(root) if root else files_at(source))
    for number, one in enumerate(listed):
        size, findings = _one(root, one) if root else _far(source, one)
        nbytes += size
        found += findings
        if progress is not None:
            progress(number + 1, len(listed))
    return Scan(shown(path), len(listed), nbytes, tuple(found))


def _one(root: str, one: Found) -> tuple[int, list[Finding]]:
    """Return the size of a file of a folder and what was found in it."""
    if one.why:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", one.why))]
    try:
        file = open_source(os.path.join(root, one.path))
        assert isinstance(file, File)  # folders are walked through
        with closing(file):
            return file.size, _look(one.path, file)
    except CheckpointError as error:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", str(error)))]


def _far(folder: Folder, one: Found) -> tuple[int, list[Finding]]:
    """Return the same of a file of a folder at an address, of which only what is looked at is fetched."""
    try:
        with closing(folder.file(one.path)) as file:
            return file.size, _look(one.path, file)
    except CheckpointError as error:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", str(error)))]


def _look(path: str, file: File) -> list[Finding]:
    with no_collection():
        return look_at(path, file).found
