"""Puts files where they are collected, all or none; a file that came from elsewhere is never taken for one of them."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass

from ..engine import explained, staged_file, temp_name
from ..errors import ConfigError, OutputError, SourceError
from ..sources import File, open_source
from ..text import escape
from .config import FetchConfig
from .download import downloaded
from .hub import commit_of, from_hub
from .origin import Origin
from .record import (
    Record,
    forget_changed,
    is_unchanged,
    read_record,
    record_of,
    remove_record,
    sha256_of,
    write_record,
)
from .same import is_same_file

__all__ = ["Collecting", "collect", "collect_file"]

CHUNK = 1 << 22


@dataclass
class Collecting:
    """How files are collected into a folder; what is begun is finished, or undone, by ``stack``."""

    strategy: str
    config: FetchConfig
    stack: ExitStack

    def afterwards(self, action: Callable[[], object]) -> None:
        """Do something once everything was fetched; later ones are done first."""

        def leave(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None:
                action()

        self.stack.push(leave)


@contextmanager
def collect(folder: str | None, strategy: str, config: FetchConfig) -> Iterator[Collecting]:
    """Make a folder, with its parents, to collect into; a folder that was made for nothing is removed."""
    made: list[str] = []
    try:
        if folder is not None:
            made = _make_folders(folder)
        with ExitStack() as stack:
            yield Collecting(strategy if folder is not None else "no_link", config, stack)
    except BaseException as error:
        for path in reversed(made):
            with suppress(OSError):
                os.rmdir(path)
        if isinstance(error, OSError):
            raise explained(error.filename or folder or ".", error) from error
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
    return kinds[origin.kind](origin, path if origin.kind == "url" or how.strategy != "no_link" else None, how)


def _local(origin: Origin, path: str | None, how: Collecting) -> str:
    source = origin.path
    _check_file(origin)
    if path is None or is_same_file(source, path):
        how.afterwards(lambda: forget_changed(path or source))
        return path or source
    if how.strategy == "symlink":
        return _linked(source, path, how, lambda: remove_record(path))
    found = os.stat(source)
    stamp = f"{found.st_size} {found.st_mtime_ns}"
    record = _still_good(origin, path)
    if record is not None and record.stamp == stamp and not how.config.overwrite:
        return path
    return _copied(source, path, how, lambda: write_record(path, record_of(origin, path, stamp=stamp)))


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
    digest = ""
    how.afterwards(lambda: write_record(path, record_of(origin, path, sha256=digest)))
    digest = how.stack.enter_context(downloaded(origin, path))
    _check_replaceable(path, how, lambda: digest)
    return path


def _hub(origin: Origin, path: str | None, how: Collecting) -> str:
    config = how.config
    if path is None:
        return from_hub(origin, config, config.huggingface_cache_dir)
    if _still_good(origin, path) is not None and not (config.overwrite or config.allow_updates):
        return path
    if how.strategy == "copy_skip_cache":
        cache = how.stack.enter_context(tempfile.TemporaryDirectory(dir=os.path.dirname(path)))
        source = from_hub(origin, config, cache)
    else:
        source = from_hub(origin, config, config.huggingface_cache_dir)

    def record() -> None:
        write_record(path, record_of(origin, path, commit=commit_of(source)))

    if is_same_file(source, path):
        return path
    if how.strategy == "symlink":
        return _linked(source, path, how, record)
    return _copied(source, path, how, record)


def _still_good(origin: Origin, path: str) -> Record | None:
    """Return the record of a file that was collected from this very origin and is what it was then."""
    record = read_record(path)
    same = record is not None and record.mark == origin.mark and is_unchanged(path, record)
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


def _linked(source: str, path: str, how: Collecting, after: Callable[[], None]) -> str:
    """Put an absolute symbolic link to ``source`` at ``path``, once everything was fetched."""
    _check_replaceable(path, how, lambda: sha256_of(source))

    def place() -> None:
        if not (os.path.islink(path) and os.readlink(path) == source):
            _link(source, path)
        after()

    how.afterwards(place)
    return path


def _link(source: str, path: str) -> None:
    """Make a link, and let it take the place of what was at ``path`` in one step."""
    temp = temp_name(path)
    try:
        os.symlink(source, temp)
        os.replace(temp, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temp)
        raise explained(path, error) from error


def _copied(source: str, path: str, how: Collecting, after: Callable[[], None]) -> str:
    """Copy ``source`` to ``path``, in place once everything was fetched."""
    _check_replaceable(path, how, lambda: sha256_of(source))
    how.afterwards(after)
    file = open_source(source)
    assert isinstance(file, File)
    with closing(file):
        staged = how.stack.enter_context(staged_file(path, file.size, force=True))
        for offset in range(0, file.size, CHUNK):
            staged.write(offset, file.read(offset, min(CHUNK, file.size - offset)))
    return path
