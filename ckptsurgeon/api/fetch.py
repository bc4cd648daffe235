"""``fetch``: downloads a file or a repository."""

from __future__ import annotations

import os
from dataclasses import replace

from ..storage.fetch.fetch import fetch as _fetch
from ..storage.fetch.record import Fetched
from ..storage.read.uri import page_notes
from .inputs.argument_types import Path, Progress

__all__ = ["fetch"]


def fetch(
    uri: Path,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    dir: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Download a file or a whole repository and return where it is; nothing is opened or run.

    ``uri`` is ``hf://org/repo[@revision][/file]``, an ``http(s)://`` address, what fsspec reads (``s3://`` …), or a
    path. A branch or tag of the hub is resolved to its commit once; a commit that is in the cache is returned without
    any request. Files of the hub are compared with its SHA-256 (LFS) or git's SHA-1; ``sha256`` is the digest that a
    single file must have. ``dir`` gets copies of the files, all or none, each with a record of its origin next to it;
    ``force`` replaces files there that were not fetched, or were changed since.

    Raises SourceError if a file is not available or is not what it should be, ConfigError for an invalid URI or
    option, OutputError if it cannot be written.
    """
    folder = os.fspath(dir) if dir is not None else None
    found = _fetch(os.fspath(uri), revision=revision, sha256=sha256, folder=folder, force=force, progress=progress)
    notes = page_notes(os.fspath(uri))
    return replace(found, notes=(*notes, *found.notes)) if notes else found
