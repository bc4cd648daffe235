"""Brings one file to where it is collected: from a folder here, an address, or a hub."""

from __future__ import annotations

import difflib
import os
import tempfile
from dataclasses import replace

from ...errors import ConfigError, SourceError
from ...util.text import escape
from .collecting import Collecting, check_replaceable, copy_blob, copy_file, link_file, prepare, still_good
from .download import download
from .hub import commit_of, from_hub
from .origin import Origin
from .record import is_outdated, record_of
from .same import is_same_file
from .store import read_store

__all__ = ["collect_file"]


def collect_file(origin: Origin, path: str | None, how: Collecting) -> str:
    """Bring one file to ``path``, or say where it lies if there is no place for it; returns its absolute path."""
    kinds = {"local": _local, "url": _address, "store": _address, "hub": _hub}
    place = path if origin.kind in ("url", "store") or how.strategy != "no_link" else None
    if place is not None:
        prepare(place)
    return kinds[origin.kind](origin, place, how)


def _local(origin: Origin, path: str | None, how: Collecting) -> str:
    source = origin.path
    _check_file(origin)
    if path is None or is_same_file(source, path):
        if is_outdated(path or source):  # who names a changed file wants it as it is
            how.forget(path or source)
        return path or source
    if how.strategy == "symlink":
        link_file(source, path, how)
        how.forget(path)
        return path
    found = os.stat(source)
    fingerprint = f"{found.st_size} {found.st_mtime_ns}"
    record = still_good(origin, path)
    if record is not None and record.fingerprint == fingerprint and not how.config.overwrite:
        return path
    how.note(path, copy_file(source, path, how, origin, fingerprint=fingerprint))
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


def _address(origin: Origin, path: str | None, how: Collecting) -> str:
    if path is None:
        raise ConfigError(
            f"{escape(origin.shown)} is an address, and there is no folder to collect it in.", hint="Set collect_in."
        )
    known = still_good(origin, path) if how.asks_again or not how.config.overwrite else None
    if known is not None and (not how.asks_again or (how.sha256 and known.sha256 == how.sha256)):
        return path
    if not how.config.allow_network:
        raise SourceError(f"{escape(origin.shown)} is not in {escape(path)} yet, and allow_network is False.")
    get = download if origin.kind == "url" else read_store
    etag = known.etag if known is not None else ""
    found = get(origin, path, how.placing, etag=etag, sha256=how.sha256, progress=how.progress)
    if found is not None:
        check_replaceable(path, how, lambda: found.sha256)
        how.note(path, replace(record_of(origin, found.staged.path, sha256=found.sha256), etag=found.etag))
    return path


def _hub(origin: Origin, path: str | None, how: Collecting) -> str:
    config = how.config
    if path is None:
        return from_hub(how.pinned(origin), config, config.huggingface_cache_dir).path
    if still_good(origin, path) is not None and not (config.overwrite or config.allow_updates):
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
