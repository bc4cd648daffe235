"""Scans a file or a folder: what reading it would do, without doing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

from ..collection import no_collection
from ..errors import CheckpointError
from ..sources import File, open_source
from .findings import Fault, Finding, Scan
from .judge import look_at
from .walk import Found, files_of

__all__ = ["scan_path"]

Progress = Callable[[int, int], None]


def scan_path(path: str, progress: Progress | None = None) -> Scan:
    """Look at a file, or at every file of a folder. Raises SourceError where there is none that can be read."""
    source = open_source(path)
    if isinstance(source, File):
        with closing(source):
            return Scan(path, 1, source.size, tuple(_look(source.name, source)))
    found: list[Finding] = []
    nbytes = 0
    listed = list(files_of(getattr(source, "path", path)))
    for number, one in enumerate(listed):
        size, findings = _one(getattr(source, "path", path), one)
        nbytes += size
        found += findings
        if progress is not None:
            progress(number + 1, len(listed))
    return Scan(path, len(listed), nbytes, tuple(found))


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


def _look(path: str, file: File) -> list[Finding]:
    with no_collection():
        return look_at(path, file).found
