"""Puts files where they are collected, all or none; a file that came from elsewhere is never taken for one of them."""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

from ..engine import output_error, remove_leftovers
from ..errors import ConfigError, OutputError, SourceError
from ..sources import File, open_source
from ..text import escape
from .config import FetchConfig
from .download import download
from .hub import commit_of, from_hub
from .origin import Origin
from .placing import Placing
from .record import Record, as_text, is_outdated, is_unchanged, read_record, record_of, record_path, sha256_of
from .same import is_same_file

__all__ = ["Collecting", "collect", "collect_file"]

CHUNK = 1 << 22


@dataclass
class Collecting:
    """How files are collected into a folder, and what is to be put there once every one of them was fetched."""

    strategy: str
    config: FetchConfig
    placing: Placing

    def note(self, path: str, record: Record) -> None:
        """Write a record for beside ``path``."""
        self.placing.text(record_path(path), as_text(record))

    def forget(self, path: str) -> None:
        """Let there be no record beside ``path``."""
        self.placing.remove(record_path(path))


@contextmanager
def collect(folder: str | None, strategy: str, config: FetchConfig) -> Iterator[Collecting]:
    """Make a folder, with its parents, to collect into; a folder that was made for nothing is removed."""
    made: list[str] = []
    try:
        if folder is not None:
            made = _make_folders(folder)
        with ExitStack() as stack:
            placing = Placing(stack)
            yield Collecting(strategy if folder is not None else "no_link", config, placing)
            placing.put()
    except BaseException as error:
        for path in reversed(made):
            with suppress(OSError):
                os.rmdir(path)
        if isinstance(error, OSError):
            raise output_error(error.filename or folder or ".", error) from error
        raise


def _make_folders(folder: str) -> list[str]:
    """Make a folder and its parents; returns those that were not there, outermost first."""
    missing: list[str] = []
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot collect into {escape(folder)}: {error.strerror}.") from error
    return missing


def collect_file(origin: Origin, path: str | None, how: Collecting) -> str:
    """Bring one file to ``path``, or say where it lies if there is no place for it; returns its absolute path."""
    kinds = {"local": _local, "url": _url, "hub": _hub}
    place = path if origin.kind == "url" or how.strategy != "no_link" else None
    if place is not None:
        remove_leftovers(place)
        remove_leftovers(record_path(place))
    return kinds[origin.kind](origin, place, how)


def _local(origin: Origin, path: str | None, how: Collecting) -> str:
    source = origin.path
    _check_file(origin)
    if path is None or is_same_file(source, path):
        if is_outdated(path or source):  # who names a changed file wants it as it is
            how.forget(path or source)
        return path or source
    if how.strategy == "symlink":
        _link(source, path, how)
        how.forget(path)
        return path
    found = os.stat(source)
    fingerprint = f"{found.st_size} {found.st_mtime_ns}"
    record = _still_good(origin, path)
    if record is not None and record.fingerprint == fingerprint and not how.config.overwrite:
        return path
    how.note(path, _copy(source, path, how, origin, fingerprint=fingerprint))
    return path


def _check_file(origin: Origin) -> None:
    """Raise SourceError where a local folder does not have the file."""
    if os.path.isfile(origin.path):
        return
    if os.path.islink(origin.path):
        raise SourceError(f"{escape(origin.path)} is a link that leads nowhere.")
    if os.path.exists(origin.path):
        raise SourceError(f"{escape(origin.path)} is no regular file.")
    names = [name for name in sorted(os.listdir(origin.source)) if os.path.isfile(os.path.join(origin.source, name))]
    near = difflib.get_close_matches(origin.file, names, n=1)
    hint = f"Did you mean {escape(near[0])}?" if near else ""
    raise SourceError(f"the folder {escape(origin.source)} has no file {escape(origin.file)}.", hint=hint)


def _url(origin: Origin, path: str | None, how: Collecting) -> str:
    if path is None:
        raise ConfigError(
            f"{escape(origin.shown)} is an address, and there is no folder to collect it in.", hint="Set collect_in."
        )
    if _still_good(origin, path) is not None and not how.config.overwrite:
        return path
    if not how.config.allow_network:
        raise SourceError(f"{escape(origin.shown)} is not in {escape(path)} yet, and allow_network is False.")
    staged, digest = download(origin, path, how.placing)
    _check_replaceable(path, how, lambda: digest)
    how.note(path, record_of(origin, staged.path, sha256=digest))
    return path


def _hub(origin: Origin, path: str | None, how: Collecting) -> str:
    config = how.config
    if path is None:
        return from_hub(origin, config, config.huggingface_cache_dir)
    if _still_good(origin, path) is not None and not (config.overwrite or config.allow_updates):
        return path
    if how.strategy == "copy_skip_cache":
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as cache:
            source = from_hub(origin, config, cache)
            how.note(path, _copy(source, path, how, origin, commit=commit_of(source)))
        return path
    source = from_hub(origin, config, config.huggingface_cache_dir)
    if is_same_file(source, path):
        return path
    if how.strategy == "symlink":
        _link(source, path, how)
        how.note(path, record_of(origin, source, commit=commit_of(source), link=source))
    else:
        how.note(path, _copy(source, path, how, origin, commit=commit_of(source)))
    return path


def _still_good(origin: Origin, path: str) -> Record | None:
    """Return the record of a file that was collected from this very origin and is what it was then."""
    record = read_record(path)
    same = record is not None and record.origin_sha256 == origin.sha256 and is_unchanged(path, record)
    return record if same else None


def _check_replaceable(path: str, how: Collecting, digest: Callable[[], str]) -> None:
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
        hint="FetchConfig(overwrite=True) replaces it; to load it, name it in paths.",
    )


def _link(source: str, path: str, how: Collecting) -> None:
    """Let an absolute symbolic link lead from ``path`` to ``source``."""
    _check_replaceable(path, how, lambda: sha256_of(source))
    if not (os.path.islink(path) and os.readlink(path) == source):
        how.placing.link(source, path)


def _copy(
    source: str, path: str, how: Collecting, origin: Origin, *, fingerprint: str = "", commit: str = ""
) -> Record:
    """Copy ``source`` for ``path``; returns the record of the copy."""
    _check_replaceable(path, how, lambda: sha256_of(source))
    file, digest = open_source(source), hashlib.sha256()
    assert isinstance(file, File)
    with closing(file):
        staged = how.placing.file(path, file.size)
        for offset in range(0, file.size, CHUNK):
            chunk = file.read(offset, min(CHUNK, file.size - offset))
            staged.write(offset, chunk)
            digest.update(chunk)
        staged.flush(file.size)
    return record_of(origin, staged.path, fingerprint=fingerprint, commit=commit, sha256=digest.hexdigest())
