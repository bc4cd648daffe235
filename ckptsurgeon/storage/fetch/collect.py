"""Collects fetched files in a folder.

A file that is already there is replaced if it was fetched before and has not changed since; otherwise, only if the user
asks for it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...errors import ConfigError, OutputError, SourceError
from ...util.text import escape
from ..read.base import File
from ..read.uri import open_source
from ..write.output_paths import output_error, remove_leftovers
from ..write.staged_file import StagedFile
from .cache import CachedFile
from .download import download
from .hub import commit_of, from_hub, pinned
from .origin import FetchConfig, FetchOrigin
from .placing import FileTransaction, is_same_file, making_folders
from .record import FetchRecord, as_text, is_outdated, is_unchanged, read_record, record_of, record_path, sha256_of
from .store import read_store

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = [
    "FileCollector",
    "check_replaceable",
    "collect",
    "collect_file",
    "copy_blob",
    "copy_bytes",
    "copy_file",
    "link_file",
    "prepare",
    "unchanged_record",
]

CHUNK = 1 << 22
"""How many bytes are read at once."""


def copy_bytes(source: File, output: StagedFile) -> None:
    """Copy a file completely; raises SourceError if it ends too early, OutputError if the copy cannot be written."""
    done = output.copy_in_kernel(source, 0, 0, source.size)
    while done < source.size:
        chunk = source.read(done, min(CHUNK, source.size - done))
        output.write(done, chunk)
        done += len(chunk)


# Puts a fetched file in place. An existing file that was not fetched, or was changed later, is not replaced.


@dataclass
class FileCollector:
    """Collects files into a folder; they are put in place together, after all of them have been fetched.

    If ``asks_again`` is True and a file was collected before, the server is asked whether its file has changed since,
    unless the file that is there has the expected digest.
    ``sha256`` is the expected digest of a single file, '' if none is given. ``anyway`` is the hint of the error that is
    raised if a different file already exists at the path. ``pins`` is {(repository, revision): commit}.
    """

    strategy: str
    config: FetchConfig
    placing: FileTransaction
    make_folder: Callable[[str], None]
    asks_again: bool = False
    sha256: str = ""
    anyway: str = "Pass FetchConfig(overwrite=True) to replace it. To load this file, pass its path in paths."
    progress: Progress | None = None
    pins: dict[tuple[str, str], str] = field(default_factory=dict)

    def pinned(self, origin: FetchOrigin) -> FetchOrigin:
        """Return ``origin`` with a commit as its revision; all files of a repository get the same commit."""
        key = (origin.source, origin.revision)
        if key not in self.pins:
            self.pins[key] = pinned(origin, self.config)[0].revision
        return replace(origin, revision=self.pins[key])

    def note(self, path: str, record: FetchRecord) -> None:
        """Store ``record`` next to the file ``path``, which it describes, when all files are put in place."""
        self.placing.text(record_path(path), as_text(record))

    def forget(self, path: str) -> None:
        """Remove the record of the file ``path`` when all files are put in place."""
        self.placing.remove(record_path(path))


@contextmanager
def collect(folder: str | None, strategy: str, config: FetchConfig) -> Iterator[FileCollector]:
    """Yield a FileCollector for ``folder``; when the block ends, the collected files are put in place.

    The folder and its parents are created if they do not exist, and removed again if the block fails. If ``folder`` is
    None, files stay where they are. ``strategy`` is one of ``STRATEGIES``, such as "symlink" or "copy".
    """
    try:
        with making_folders() as make, ExitStack() as stack:
            if folder is not None:
                make(folder)
            placing = FileTransaction(stack)
            yield FileCollector(strategy if folder is not None else "no_link", config, placing, make)
            placing.put()
    except OSError as error:
        raise output_error(error.filename or folder or ".", error) from error


def prepare(path: str) -> None:
    """Remove temp files of the file ``path`` and of its record that killed runs left."""
    remove_leftovers(path)
    remove_leftovers(record_path(path))


def unchanged_record(origin: FetchOrigin, path: str) -> FetchRecord | None:
    """Return the record of the file ``path`` if it was collected from ``origin`` and is unchanged; None otherwise."""
    record = read_record(path)
    same = record is not None and record.origin_sha256 == origin.sha256 and is_unchanged(path, record)
    return record if same else None


def check_replaceable(path: str, how: FileCollector, digest: Callable[[], str]) -> None:
    """Raise OutputError if the file ``path`` must not be replaced: it was not fetched, or has changed since.

    Links may be replaced, and so may a file whose SHA-256 is ``digest()``, the SHA-256 of the new file. If the setting
    ``overwrite`` of ``how.config`` is True, every file may be replaced.
    """
    if os.path.islink(path) or not os.path.lexists(path) or how.config.overwrite:
        return
    if not os.path.isfile(path):
        raise OutputError(f"{escape(path)} is not a regular file, so it is not replaced.")
    record = read_record(path)
    if (record is not None and is_unchanged(path, record)) or sha256_of(path) == digest():
        return
    known = f"it has changed since it was collected from {escape(record.source)}" if record is not None else ""
    raise OutputError(
        f"{escape(path)} exists and is not the requested file; {known or 'its origin is unknown'}.",
        hint=how.anyway,
    )


def link_file(source: str, path: str, how: FileCollector) -> None:
    """Make an absolute symbolic link from ``path`` to ``source``."""
    check_replaceable(path, how, lambda: sha256_of(source))
    if not (os.path.islink(path) and os.readlink(path) == source):
        how.placing.link(source, path)


def copy_blob(blob: CachedFile, path: str, how: FileCollector, origin: FetchOrigin) -> str:
    """Copy ``blob``, a file that was read and checked before, to ``path``; return ``path``."""
    commit, record = commit_of(blob.path), unchanged_record(origin, path)
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


def copy_file(source: str, path: str, how: FileCollector, origin: FetchOrigin, *, fingerprint: str) -> FetchRecord:
    """Copy the file ``source`` to ``path``, and return the record of the copy.

    ``fingerprint`` is a text with the size and time of ``source``; the record contains it.
    """
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


def collect_file(origin: FetchOrigin, path: str | None, how: FileCollector) -> str:
    """Link, copy or download the file ``origin`` to ``path``; return the path at which it is then.

    If ``path`` is None, or the strategy of ``how`` is "no_link", a local file stays where it is, and a file of the hub
    stays in the cache.
    """
    kinds = {"local": _local, "url": _address, "store": _address, "hub": _hub}
    place = path if origin.kind in ("url", "store") or how.strategy != "no_link" else None
    if place is not None:
        prepare(place)
    return kinds[origin.kind](origin, place, how)


def _local(origin: FetchOrigin, path: str | None, how: FileCollector) -> str:
    source = origin.path
    _check_file(origin)
    if path is None or is_same_file(source, path):
        if is_outdated(path or source):  # the user asks for this changed file itself
            how.forget(path or source)
        return path or source
    if how.strategy == "symlink":
        link_file(source, path, how)
        how.forget(path)
        return path
    found = os.stat(source)
    fingerprint = f"{found.st_size} {found.st_mtime_ns}"
    record = unchanged_record(origin, path)
    if record is not None and record.fingerprint == fingerprint and not how.config.overwrite:
        return path
    how.note(path, copy_file(source, path, how, origin, fingerprint=fingerprint))
    return path


def _check_file(origin: FetchOrigin) -> None:
    """Raise SourceError if the local file ``origin`` does not exist or is not a regular file.

    If the file does not exist, but its folder has a file with a similar name, the hint contains this name.
    """
    if os.path.isfile(origin.path):
        return
    if os.path.islink(origin.path) and not os.path.exists(origin.path):
        raise SourceError(f"{escape(origin.path)} is a link whose target does not exist.")
    if os.path.exists(origin.path):
        raise SourceError(f"{escape(origin.path)} is not a regular file.")
    names = [name for name in sorted(os.listdir(origin.source)) if os.path.isfile(os.path.join(origin.source, name))]
    near = difflib.get_close_matches(origin.file, names, n=1)
    hint = f"Did you mean {escape(near[0])}?" if near else ""
    raise SourceError(f"the folder {escape(origin.source)} has no file {escape(origin.file)}.", hint=hint)


def _address(origin: FetchOrigin, path: str | None, how: FileCollector) -> str:
    if path is None:
        raise ConfigError(
            f"{escape(origin.shown)} is an address, and no folder is given to collect it in.",
            hint="Set collect_in to a folder.",
        )
    known = unchanged_record(origin, path) if how.asks_again or not how.config.overwrite else None
    if known is not None and (not how.asks_again or (how.sha256 and known.sha256 == how.sha256)):
        return path
    if not how.config.allow_network:
        raise SourceError(
            f"the file {escape(origin.shown)} was not fetched to {escape(path)} yet, and allow_network is False.",
            hint="Set allow_network to True.",
        )
    get = download if origin.kind == "url" else read_store
    etag = known.etag if known is not None else ""
    found = get(origin, path, how.placing, etag=etag, sha256=how.sha256, progress=how.progress)
    if found is not None:
        check_replaceable(path, how, lambda: found.sha256)
        how.note(path, replace(record_of(origin, found.staged.path, sha256=found.sha256), etag=found.etag))
    return path


def _hub(origin: FetchOrigin, path: str | None, how: FileCollector) -> str:
    config = how.config
    if path is None:
        return from_hub(how.pinned(origin), config, config.huggingface_cache_dir).path
    if unchanged_record(origin, path) is not None and not (config.overwrite or config.allow_updates):
        return path
    if how.strategy == "copy_skip_cache":
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as cache:
            return copy_blob(from_hub(how.pinned(origin), config, cache), path, how, origin)
    blob = from_hub(how.pinned(origin), config, config.huggingface_cache_dir)
    if how.strategy != "symlink":
        return copy_blob(blob, path, how, origin)
    if not is_same_file(blob.path, path):
        link_file(blob.path, path, how)
        how.note(path, record_of(origin, blob.path, commit=commit_of(blob.path), link=blob.path))
    return path
