"""The journal of an output that is made of several parts: what is written, and what came of each finished part.

It lies in the temp folder of the output, so that a later run can go on from where a killed one stopped. Each line has
the CRC-32 of its text, since the last line of a killed run may be cut short.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..json_text import read_json
from ..small_files import open_file
from .output_checks import output_error
from .temp import leftovers

__all__ = ["JOURNAL", "Begun", "Journal", "begun_output"]

JOURNAL = "ckpt-journal"
"""The name of the file."""
MOST_BYTES = 1 << 30
KIND, VERSION = "ckpt.journal", 1


class Journal:
    """The journal in a folder, open for adding lines; ``shown`` is the output's path in messages."""

    def __init__(self, folder: str, shown: str) -> None:
        self._path, self._shown = os.path.join(folder, JOURNAL), shown

    def begin(self, head: Mapping[str, Any]) -> None:
        """Begin a new journal, whose first line says what is written; raises OutputError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self.add({"kind": KIND, "version": VERSION, **head})

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line, of plain data; raises OutputError."""
        data = _line(json.dumps(row, separators=(",", ":")))
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                while data:
                    data = data[os.write(fd, data) :]
            finally:
                os.close(fd)
        except OSError as error:
            raise output_error(self._shown, error) from error


class Begun(NamedTuple):
    """An output that a run began and did not finish: its temp folder, what was being written, the finished parts."""

    folder: str
    head: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def names(self) -> set[str]:
        """The names of the finished parts."""
        return {str(row.get("name")) for row in self.rows}

    @property
    def done(self) -> str:
        """How many parts are finished, as in "2 of 5"."""
        return f"{len(self.names)} of {self.head.get('parts')}"


def begun_output(path: str) -> Begun | None:
    """Return what a run that ended left of the output ``path``; None if it finished no part.

    If several runs did, which only happens on file systems without locks, the one with the most parts is returned.
    """
    found = [begun for folder in leftovers(path) if os.path.isdir(folder) and (begun := _read(folder)) is not None]
    return max(found, key=lambda begun: len(begun.rows), default=None)


def _read(folder: str) -> Begun | None:
    with suppress(OSError, ValueError, LookupError, TypeError), open_file(os.path.join(folder, JOURNAL)) as file:
        if os.fstat(file.fileno()).st_size <= MOST_BYTES:
            head, *rows = _whole_lines(file.read())
            if (head["kind"], head["version"]) == (KIND, VERSION) and rows:
                return Begun(folder, head, tuple(rows))
    return None


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _whole_lines(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield the lines up to the first one that is damaged."""
    for line in data.splitlines(keepends=True):
        text = line[9:-1].decode("utf-8", "replace")
        if _line(text) != line:
            return
        yield read_json(text)
