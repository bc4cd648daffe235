"""Writes and reads the journal of an output of several files (parts).

The first line describes the output; each later line is for a finished part. The journal is in the temp folder of the
output, so that a later run can continue a killed run. Each line contains the CRC-32 of its text, since the last line of
a killed run may be truncated.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..descriptors import sync, sync_folder
from ..json_text import read_json
from ..small_files import read_file
from .output_paths import leftovers, output_error

__all__ = ["JOURNAL", "ONLY_COPY", "Journal", "UnfinishedOutput", "only_copies", "unfinished_output"]

JOURNAL = ".ckpt-journal"
"""The name of the journal; it begins with a dot, unlike the names of all files of an output."""
ONLY_COPY = ".ckpt-only-copy"
"""The name of an empty file in a folder that has the only copy of some values, because the sources were deleted."""
MOST_BYTES = 1 << 30
KIND, VERSION = "ckpt.journal", 1


class Journal:
    """The journal in a folder, open for adding lines; ``shown`` is the output's path in messages."""

    def __init__(self, folder: str, shown: str) -> None:
        self._path, self._shown = os.path.join(folder, JOURNAL), shown

    def begin(self, head: Mapping[str, Any]) -> None:
        """Begin a new journal with ``head``, which describes the output, as its first line; raises OutputError."""
        self.add({"kind": KIND, "version": VERSION, **head})

    def cut(self, nbytes: int) -> None:
        """Truncate the journal to ``nbytes``, the size of its complete lines.

        A run that was killed may have left an incomplete last line; lines that were added after it would never be read.
        """
        try:
            os.truncate(self._path, nbytes)
        except OSError as error:
            raise output_error(self._shown, error) from error

    def remove(self) -> None:
        """Remove the journal, if there is one, after the output is complete; raises OutputError."""
        try:
            if os.path.lexists(self._path):
                os.unlink(self._path)
        except OSError as error:
            raise output_error(self._shown, error) from error

    def add(self, row: Mapping[str, Any], *, wait: bool = False) -> None:
        """Add a line with ``row`` as JSON; with ``wait``, wait until it is on disk. Raises OutputError."""
        data = _line(json.dumps(row, separators=(",", ":")))
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                while data:
                    data = data[os.write(fd, data) :]
                if wait:
                    sync(fd)
                    sync_folder(os.path.dirname(self._path))
            finally:
                os.close(fd)
        except OSError as error:
            raise output_error(self._shown, error) from error


class UnfinishedOutput(NamedTuple):
    """An output that a run began and did not finish: its temp folder, and the content of its journal.

    ``head`` is the first line of the journal, ``rows`` are the lines of the finished files (parts), and ``nbytes`` is
    the size of all complete lines.
    """

    folder: str
    head: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    nbytes: int

    @property
    def names(self) -> set[str]:
        """The names of the finished files."""
        return {row["name"] for row in self.rows}

    @property
    def done(self) -> str:
        """A text with the number of finished files and of all files: ``2 of 5``."""
        return f"{len(self.names)} of {self.head.get('parts')}"


def unfinished_output(path: str) -> UnfinishedOutput | None:
    """Return the unfinished output that an earlier run left for ``path``; None if no run left a finished part.

    On file systems without locks there may be several; then the one with the most finished parts is returned.
    """
    found = [begun for folder in leftovers(path) if _is_own(folder) and (begun := _read(folder)) is not None]
    return max(found, key=lambda begun: len(begun.rows), default=None)


def only_copies(path: str) -> list[str]:
    """Return the temp folders of the output ``path`` that have the only copy of values, since sources were deleted."""
    return [
        folder for folder in leftovers(path) if _is_folder(folder) and os.path.lexists(os.path.join(folder, ONLY_COPY))
    ]


def _is_folder(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _is_own(folder: str) -> bool:
    """Return whether a path is a folder of this user, and not a link.

    The folder of another user must not be continued, since its content becomes a part of the output.
    """
    with suppress(OSError):
        found = os.lstat(folder)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _read(folder: str) -> UnfinishedOutput | None:
    with suppress(OSError, ValueError, LookupError, TypeError):
        data = read_file(os.path.join(folder, JOURNAL), MOST_BYTES)
        lines = list(_whole_lines(data))
        head, *rows = (read_json(line[9:-1].decode()) for line in lines)
        if (
            (head["kind"], head["version"]) == (KIND, VERSION)
            and rows
            and all(isinstance(row["name"], str) for row in rows)
        ):
            return UnfinishedOutput(folder, head, tuple(rows), sum(map(len, lines)))
    return None


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Yield the lines before the first damaged line."""
    for line in data.splitlines(keepends=True):
        if _line(line[9:-1].decode("utf-8", "replace")) != line:
            return
        yield line
