"""Fetches a file or a whole repository to this machine, pinned and checked (``ckpt fetch``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from ...errors import ConfigError, FormatError, SourceError
from ...util.text import escape
from ..cached_documents import cache_folder
from ..read.uri import open_source
from ..write.output_paths import check_is_path
from .cache import CachedFile, read_blob
from .collect import collect, collect_file, copy_blob, prepare
from .hub import from_hub, pinned, repository_from_hub
from .origin import FetchConfig, FetchOrigin, file_name, origin_of_uri
from .placing import check_no_links
from .record import Fetched, fetched_files, notes_of, record_path
from .store import names_below

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["fetch"]

ANYWAY = "Use --force to replace it."
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class _FetchRequest:
    """A request of ``ckpt fetch``; if ``folder`` is None, local files stay where they are, and others go to a cache."""

    origin: FetchOrigin
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
    """Fetch the files of a URI to this machine; see ``ckptsurgeon.fetch``."""
    if folder is not None:
        check_is_path(folder)
    origin = origin_of_uri(uri, revision)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{escape(sha256)} is not a SHA-256: it must have 64 hexadecimal digits.")
    config = FetchConfig(overwrite=force, token=None)
    order = _FetchRequest(origin, (sha256 or "").lower(), folder and os.path.abspath(folder), config, progress)
    return {"hub": _hub, "local": _local, "url": _address, "store": _address}[origin.kind](order)


def _hub(order: _FetchRequest) -> Fetched:
    _check_one_file(order, bool(order.origin.file))
    at, notes = pinned(order.origin, order.config)
    if at.file:
        blob = from_hub(at, order.config, None, order.progress)
        return _local_files(order, at, blob.path, {at.file: blob}, notes)
    return _local_files(order, at, *repository_from_hub(at, order.config, order.progress), notes)


def _local(order: _FetchRequest) -> Fetched:
    origin = order.origin
    _check_one_file(order, bool(origin.file))
    names, notes = ([origin.file], ()) if origin.file else _names_in(origin.source)
    blobs: dict[str, CachedFile] = {}
    for name in names:
        path = os.path.join(origin.source, name)
        open_source(path).close()  # type: ignore[union-attr]  # raises an error if it is not a regular file
        blob = read_blob(path)
        assert blob is not None
        blobs[name] = blob
    return _local_files(order, origin, origin.path if origin.file else origin.source, blobs, notes)


def _address(order: _FetchRequest) -> Fetched:
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


def _local_files(
    order: _FetchRequest, at: FetchOrigin, path: str, blobs: Mapping[str, CachedFile], notes: tuple[str, ...] = ()
) -> Fetched:
    """Return the result for files on this machine; if the request has a folder, first copy the files into it.

    ``at`` is the origin of the files, ``path`` the path of the file or folder on this machine, ``blobs`` is {name:
    file}, and ``notes`` are the notes on a local folder, or on the commit.
    """
    blobs = {name: _checked(order, name, blob) for name, blob in blobs.items()}
    paths = {name: blob.path for name, blob in blobs.items()}
    if order.folder is not None:
        paths = _copy_into_folder(order, order.folder, at, blobs)
        path = paths[at.file] if at.file else order.folder
    if at.kind == "local":
        return Fetched(at.shown, path, "", fetched_files(blobs, paths), notes)
    uri = f"hf://{at.source}@{at.revision}{'/' if at.file else ''}{at.file}"
    return Fetched(uri, path, at.revision, fetched_files(blobs, paths), (*notes, *notes_of(blobs)))


def _copy_into_folder(
    order: _FetchRequest, folder: str, at: FetchOrigin, blobs: Mapping[str, CachedFile]
) -> dict[str, str]:
    """Copy all files into a folder, or none if one copy fails; return {name: path of the copy}.

    ``at`` is the origin of the files, and ``blobs`` is {name: file}.
    """
    with collect(folder, "copy", order.config) as how:
        how.anyway = ANYWAY
        paths = {name: _place(folder, name, how.make_folder) for name in blobs}
        _check_distinct(paths)
        for name, blob in blobs.items():
            copy_blob(blob, paths[name], how, replace(at, file=name))
    return paths


def _place(folder: str, name: str, make_folder: Callable[[str], None]) -> str:
    """Return the path of the file ``name`` in a folder, and create the folders above the file.

    Temp files that killed runs left for this path are removed. Raises FormatError if the name points out of the folder,
    OutputError if one of the folders above the file is a link.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\0" in name or "\\" in name:
        raise FormatError(f"a file name points outside its folder: {escape(name)}.", rule="outside")
    check_no_links(folder, name)
    path = os.path.join(folder, *name.split("/"))
    make_folder(os.path.dirname(path))
    prepare(path)
    return path


def _check_distinct(paths: Mapping[str, str]) -> None:
    """Raise FormatError if the path of a file is also the path of another file's record: ``.NAME.collected.json``."""
    records = {record_path(path) for path in paths.values()}
    taken = [name for name, path in paths.items() if path in records]
    if taken:
        raise FormatError(
            f"{escape(taken[0])} cannot be fetched: ckpt needs this name for its record of the origin of another file.",
            rule="outside",
            hint="Rename the file at its source, or leave it out.",
        )


def _check_one_file(order: _FetchRequest, single: bool) -> None:
    if order.sha256 and not single:
        raise ConfigError(
            f"{escape(order.origin.shown)} is a folder, and --sha256 needs a single file.",
            hint="Add the name of the file.",
        )


def _checked(order: _FetchRequest, name: str, blob: CachedFile) -> CachedFile:
    """Return ``blob``; raises SourceError if the request has a SHA-256, and ``blob`` has a different one."""
    if not order.sha256:
        return blob
    if blob.sha256 != order.sha256:
        raise SourceError(
            f"{escape(name)} has the wrong content: its SHA-256 is {blob.sha256}, not {order.sha256}.",
            hint="Compare the expected SHA-256 with the one that the publisher gives, or fetch the file again.",
        )
    return replace(blob, checked="asked")


def _read(order: _FetchRequest, name: str, path: str) -> CachedFile:
    blob = read_blob(path)
    assert blob is not None
    return _checked(order, name, blob)


def _names_in(folder: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the relative paths of all files in a folder and its subfolders, sorted, and notes on linked subfolders.

    Raises SourceError if there are no files, or if a subfolder cannot be listed.
    """
    found: list[str] = []
    links: list[str] = []
    for at, folders, names in os.walk(folder, onerror=_raise_unlisted):
        found += (os.path.relpath(os.path.join(at, name), folder) for name in names)
        paths = (os.path.join(at, name) for name in folders)
        links += (os.path.relpath(path, folder) for path in paths if os.path.islink(path))
    if not found:
        raise SourceError(f"{escape(folder)} has no files.")
    return sorted(found), tuple(f"{escape(one)} is a link to a folder: its files are left out" for one in sorted(links))


def _raise_unlisted(error: OSError) -> NoReturn:
    raise SourceError(f"{escape(os.fsdecode(error.filename))} cannot be listed: {error.strerror}.") from error


def _kept_in(origin: FetchOrigin) -> str:
    """Return the folder in the user's cache in which the file of an origin is kept."""
    return os.path.join(cache_folder(), "fetched", origin.sha256[:32])
