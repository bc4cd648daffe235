"""``fetch``: downloads a file or a repository."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..formats.base.format_table import is_weights
from ..formats.unsupported.text import text_kind
from ..storage.fetch.fetch import fetch as _fetch
from ..storage.fetch.record import Fetched, FetchedFile
from ..storage.read.uri import page_notes
from ..storage.small_files import open_file
from ..util.text import escape
from .inputs.argument_types import Path, Progress, checked

__all__ = ["fetch"]

HEAD = 4096
"""How many bytes of a fetched file are read, to find a text in place of weights."""


@checked
def fetch(
    uri: Path,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    dir: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Download a file or a whole repository, and return the paths of the files; no file is opened or run.

    ``uri`` is ``hf://org/repo[@revision][/file]``, an ``http(s)://`` address, an address that fsspec reads (``s3://``
    and others), or a path. A branch or tag on the hub is resolved to its commit once; if that commit is in the cache,
    no request is sent. Files from the hub are checked against the hub's SHA-256 (LFS) or git's SHA-1; ``sha256`` is the
    digest that a single file must have. If ``dir`` is given, all files are copied into this folder, or none. For each
    of them, a further file records the origin. With ``force``, existing files in ``dir`` are replaced even if they were
    not fetched, or were changed after they were fetched.

    Raises SourceError if a file is not available or does not have its checksum, ConfigError for an invalid URI or
    option, OutputError if a file cannot be written.
    """
    folder = os.fspath(dir) if dir is not None else None
    found = _fetch(os.fspath(uri), revision=revision, sha256=sha256, folder=folder, force=force, progress=progress)
    notes = (*page_notes(os.fspath(uri)), *_text_notes(found.files))
    return replace(found, notes=(*notes, *found.notes)) if notes else found


def _text_notes(files: Iterable[FetchedFile]) -> Iterator[str]:
    """Yield notes on files with the name of weights that are texts: servers send web pages in place of files."""
    for one in files:
        if one.checked or not is_weights(one.name):
            continue
        with open_file(one.path) as file:
            found = text_kind(file.read(HEAD), one.size)
        if found is not None:
            yield f"{escape(one.name)} has no weights: it is {found.what}"
