"""``fetch``: brings a file or a repository to this machine."""

from __future__ import annotations

import os

from ..storage.fetch.fetch import fetch as _fetch
from ..storage.fetch.record import Fetched
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
    """Bring a file or a whole repository to this machine and say where it lies; nothing of it is opened or run.

    ``uri`` is ``hf://org/repo[@revision][/file]``, an ``http(s)://`` address, what fsspec reads (``s3://`` …), or a
    path. A branch or tag of the hub is asked for once, and its commit is what is fetched; a commit that is in the cache
    is given without any request. What the hub has is held against its SHA-256 (LFS) or git's SHA-1; ``sha256`` is what
    one file must be, wherever it is from. ``dir`` gets files of its own, all or none, each with a record beside it of
    where it is from; ``force`` replaces files there that were not fetched, or were changed since.

    Raises SourceError where it cannot be had or is not what it should be, ConfigError for what cannot be meant,
    OutputError where it cannot be put.
    """
    folder = os.fspath(dir) if dir is not None else None
    return _fetch(
        os.fspath(uri), revision=revision, sha256=sha256, folder=folder, force=force, progress=progress
    )  # fmt: skip
