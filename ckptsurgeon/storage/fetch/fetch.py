"""``ckpt fetch``: a file or a whole repository brought to this machine, pinned, checked, and put where it is wanted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import ConfigError, FormatError, SourceError
from ...util.text import escape
from ..read.http.kept import cache_folder
from ..read.uri import open_source
from ..write.output_checks import check_is_path
from .cache import Blob, read_blob
from .collect import collect, collect_file, copy_blob, prepare
from .hub import from_hub, pinned, repository_from_hub
from .origin import FetchConfig, Origin, file_name, origin_of_uri
from .placing import check_no_links
from .record import Fetched, fetched_files, notes_of, record_path
from .store import names_below

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["fetch"]

ANYWAY = "--force replaces it."
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class _Order:
    """What was asked for. ``folder`` None leaves it where it is kept."""

    origin: Origin
    sha256: str
    folder: str | None
    config: FetchConfig
    progress: Progress | None


def fetch(
    uri: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    folder: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Bring what a URI names to this machine; see ``ckptsurgeon.fetch``."""
    if folder is not None:
        check_is_path(folder)
    origin = origin_of_uri(uri, revision)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{escape(sha256)} is no SHA-256: that has 64 hexadecimal digits.")
    config = FetchConfig(overwrite=force, token=None)
    order = _Order(origin, (sha256 or "").lower(), folder and os.path.abspath(folder), config, progress)
    return {"hub": _hub, "local": _local, "url": _address, "store": _address}[origin.kind](order)


def _hub(order: _Order) -> Fetched:
    _check_one_file(order, bool(order.origin.file))
    at = pinned(order.origin, order.config)
    if at.file:
        blob = from_hub(at, order.config, None, order.progress)
        return _given(order, at, blob.path, {at.file: blob})
    return _given(order, at, *repository_from_hub(at, order.config, order.progress))


def _local(order: _Order) -> Fetched:
    origin = order.origin
    _check_one_file(order, bool(origin.file))
    names = [origin.file] if origin.file else _names_in(origin.source)
    blobs: dict[str, Blob] = {}
    for name in names:
        path = os.path.join(origin.source, name)
        open_source(path).close()  # type: ignore[union-attr]  # refuses what is no regular file
        blob = read_blob(path)
        assert blob is not None
        blobs[name] = blob
    return _given(order, origin, origin.path if origin.file else origin.source, blobs)


def _address(order: _Order) -> Fetched:
    names = names_below(order.origin) if order.origin.kind == "store" else []
    _check_one_file(order, not names)
    base = order.origin.path
    origins = {name: replace(order.origin, source=base, file=name) for name in names}
    origins = origins or {file_name(order.origin): order.origin}
    folder = order.folder or _kept_in(order.origin)
    config = order.config if order.folder else replace(order.config, overwrite=True)
    paths: dict[str, str] = {}
    with collect(folder, "copy", config) as how:
        how.asks_again, how.anyway, how.sha256, how.progress = True, ANYWAY, order.sha256, order.progress
        for name in origins:
            paths[name] = _place(folder, name, how.make_folder)
        _check_distinct(paths)
        for name, origin in origins.items():
            paths[name] = collect_file(origin, paths[name], how)
    blobs = {name: _read(order, name, path) for name, path in paths.items()}
    path = folder if names else next(iter(paths.values()))
    return Fetched(order.origin.shown, path, "", fetched_files(blobs, paths))


def _given(order: _Order, at: Origin, path: str, blobs: Mapping[str, Blob]) -> Fetched:
    """Return what lies on this machine, or copies of it in the folder that was asked for."""
    blobs = {name: _as_asked(order, name, blob) for name, blob in blobs.items()}
    paths = {name: blob.path for name, blob in blobs.items()}
    if order.folder is not None:
        paths = _copied(order, order.folder, at, blobs)
        path = paths[at.file] if at.file else order.folder
    if at.kind == "local":
        return Fetched(at.shown, path, "", fetched_files(blobs, paths))
    uri = f"hf://{at.source}@{at.revision}{'/' if at.file else ''}{at.file}"
    return Fetched(uri, path, at.revision, fetched_files(blobs, paths), notes_of(blobs))


def _copied(order: _Order, folder: str, at: Origin, blobs: Mapping[str, Blob]) -> dict[str, str]:
    """Put copies into a folder, all or none; returns where each is to be."""
    with collect(folder, "copy", order.config) as how:
        how.anyway = ANYWAY
        paths = {name: _place(folder, name, how.make_folder) for name in blobs}
        _check_distinct(paths)
        for name, blob in blobs.items():
            copy_blob(blob, paths[name], how, replace(at, file=name))
    return paths


def _place(folder: str, name: str, make_folder: Callable[[str], None]) -> str:
    """Return where a file goes in a folder, with what it needs there; raises FormatError, OutputError."""
    if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\0" in name or "\\" in name:
        raise FormatError(f"a file is to lie outside its folder: {escape(name)}.", rule="outside")
    check_no_links(folder, name)
    path = os.path.join(folder, *name.split("/"))
    make_folder(os.path.dirname(path))
    prepare(path)
    return path


def _check_distinct(paths: Mapping[str, str]) -> None:
    """Raise FormatError for a file that is called as the record of another."""
    records = {record_path(path) for path in paths.values()}
    taken = [name for name, path in paths.items() if path in records]
    if taken:
        raise FormatError(f"{escape(taken[0])} has the name that the record of another file has.", rule="outside")


def _check_one_file(order: _Order, single: bool) -> None:
    if order.sha256 and not single:
        raise ConfigError(
            f"{escape(order.origin.shown)} is a folder, and --sha256 is of one file.", hint="Name the file, too."
        )


def _as_asked(order: _Order, name: str, blob: Blob) -> Blob:
    """Return a file as held against the SHA-256 that was given; raises SourceError."""
    if not order.sha256:
        return blob
    if blob.sha256 != order.sha256:
        raise SourceError(
            f"{escape(name)} is not what was asked for: its SHA-256 is {blob.sha256}, not {order.sha256}."
        )
    return replace(blob, checked="asked")


def _read(order: _Order, name: str, path: str) -> Blob:
    blob = read_blob(path)
    assert blob is not None
    return _as_asked(order, name, blob)


def _names_in(folder: str) -> list[str]:
    """Return the names of the files in a folder and below, sorted."""
    found = [
        os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names
    ]  # fmt: skip
    if not found:
        raise SourceError(f"{escape(folder)} has no files.")
    return sorted(found)


def _kept_in(origin: Origin) -> str:
    """Return the folder in which the files of an address are kept: by the address, below the user's cache."""
    return os.path.join(cache_folder(), "fetched", origin.sha256[:32])
