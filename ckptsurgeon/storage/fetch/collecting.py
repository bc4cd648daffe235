"""Puts what was brought where it is collected; what came from elsewhere is never taken for it, nor replaced by it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...errors import OutputError
from ...util.text import escape
from ..read.base import File
from ..read.uri import open_source
from ..write.output_checks import output_error
from ..write.temp import remove_leftovers
from .blob import Blob
from .config import FetchConfig
from .copying import copy_bytes
from .folders import making_folders
from .hub import commit_of, pinned
from .origin import Origin
from .placing import Placing
from .record import Record, as_text, is_unchanged, read_record, record_of, record_path, sha256_of
from .same import is_same_file

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["Collecting", "check_replaceable", "collect", "copy_blob", "copy_file", "link_file", "prepare", "still_good"]

CHUNK = 1 << 22


@dataclass
class Collecting:
    """How files are collected into a folder, and what is to be put there once every one of them was fetched.

    ``asks_again`` lets an address be asked whether what was collected from it is still what it has. ``sha256`` is what
    the one file must be, '' where nobody says; ``anyway`` what is advised where something is in the way.
    """

    strategy: str
    config: FetchConfig
    placing: Placing
    make_folder: Callable[[str], None]
    asks_again: bool = False
    sha256: str = ""
    anyway: str = "FetchConfig(overwrite=True) replaces it; to load it, name it in paths."
    progress: Progress | None = None
    pins: dict[tuple[str, str], str] = field(default_factory=dict)

    def pinned(self, origin: Origin) -> Origin:
        """Return an origin at a commit: that of the first file of its repository, so that all are of one."""
        key = (origin.source, origin.revision)
        if key not in self.pins:
            self.pins[key] = pinned(origin, self.config).revision
        return replace(origin, revision=self.pins[key])

    def note(self, path: str, record: Record) -> None:
        """Write a record for beside ``path``."""
        self.placing.text(record_path(path), as_text(record))

    def forget(self, path: str) -> None:
        """Let there be no record beside ``path``."""
        self.placing.remove(record_path(path))


@contextmanager
def collect(folder: str | None, strategy: str, config: FetchConfig) -> Iterator[Collecting]:
    """Make a folder, with its parents, to collect into; a folder that was made for nothing is removed."""
    try:
        with making_folders() as make, ExitStack() as stack:
            if folder is not None:
                make(folder)
            placing = Placing(stack)
            yield Collecting(strategy if folder is not None else "no_link", config, placing, make)
            placing.put()
    except OSError as error:
        raise output_error(error.filename or folder or ".", error) from error


def prepare(path: str) -> None:
    """Remove what killed runs have left of a file and of its record."""
    remove_leftovers(path)
    remove_leftovers(record_path(path))


def still_good(origin: Origin, path: str) -> Record | None:
    """Return the record of a file that was collected from this very origin and is what it was then."""
    record = read_record(path)
    same = record is not None and record.origin_sha256 == origin.sha256 and is_unchanged(path, record)
    return record if same else None


def check_replaceable(path: str, how: Collecting, digest: Callable[[], str]) -> None:
    """Raise OutputError where a file lies there that nobody knows to have been collected, and has other bytes."""
    if os.path.islink(path) or not os.path.lexists(path) or how.config.overwrite:
        return
    if not os.path.isfile(path):
        raise OutputError(f"{escape(path)} is no regular file, and is not replaced.")
    record = read_record(path)
    if (record is not None and is_unchanged(path, record)) or sha256_of(path) == digest():
        return
    known = f"it has changed since it was collected from {escape(record.source)}" if record is not None else ""
    raise OutputError(
        f"{escape(path)} is not what was asked for, and {known or 'nothing says where it is from'}.",
        hint=how.anyway,
    )


def link_file(source: str, path: str, how: Collecting) -> None:
    """Let an absolute symbolic link lead from ``path`` to ``source``."""
    check_replaceable(path, how, lambda: sha256_of(source))
    if not (os.path.islink(path) and os.readlink(path) == source):
        how.placing.link(source, path)


def copy_blob(blob: Blob, path: str, how: Collecting, origin: Origin) -> str:
    """Put a copy of a file that was read and found to be good at ``path``, a file of its own; returns that."""
    commit, record = commit_of(blob.path), still_good(origin, path)
    same = record is not None and (record.sha256, record.commit) == (blob.sha256, commit) and not how.config.overwrite
    if same or is_same_file(blob.path, path):
        return path
    check_replaceable(path, how, lambda: blob.sha256)
    file = open_source(blob.path)
    assert isinstance(file, File)
    with closing(file):
        staged = how.placing.file(path, blob.size)
        copy_bytes(file, staged)
        staged.flush(blob.size)
    how.note(path, record_of(origin, staged.path, commit=commit, sha256=blob.sha256))
    return path


def copy_file(source: str, path: str, how: Collecting, origin: Origin, *, fingerprint: str) -> Record:
    """Copy ``source`` for ``path``; returns the record of the copy."""
    check_replaceable(path, how, lambda: sha256_of(source))
    file, digest = open_source(source), hashlib.sha256()
    assert isinstance(file, File)
    with closing(file):
        staged = how.placing.file(path, file.size)
        for offset in range(0, file.size, CHUNK):
            chunk = file.read(offset, min(CHUNK, file.size - offset))
            staged.write(offset, chunk)
            digest.update(chunk)
        staged.flush(file.size)
    return record_of(origin, staged.path, fingerprint=fingerprint, sha256=digest.hexdigest())
