"""Fetches files through fsspec: s3://, gs://, memory:// and every other scheme for which fsspec has a driver."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ...errors import SourceError
from ...util.text import escape
from ..read.fsspec_urls import driver_errors, file_system
from .download import DownloadedFile
from .origin import FetchOrigin
from .placing import FileTransaction

if TYPE_CHECKING:
    from ..read.base import Progress

__all__ = ["names_below", "read_store"]

CHUNK = 1 << 22


def names_below(origin: FetchOrigin) -> list[str]:
    """Return the relative paths of all files in a folder, sorted; [] if the origin is a file. Raises SourceError."""
    system, path = file_system(origin.path.rstrip("/"))
    with driver_errors(origin.shown):
        if not system.isdir(path):
            return []
        return sorted(str(name)[len(path.rstrip("/")) + 1 :] for name in system.find(path))


def read_store(
    origin: FetchOrigin,
    path: str,
    placing: FileTransaction,
    *,
    etag: str = "",
    sha256: str = "",
    progress: Progress | None = None,
) -> DownloadedFile | None:
    """Fetch a file into a temp file, which ``placing`` later moves to ``path``.

    Returns None if the version of the file (fsspec's ``ukey``) is still ``etag``. Raises SourceError if the file cannot
    be fetched completely, or does not match ``sha256``.
    """
    system, inside = file_system(origin.path.rstrip("/"))
    with driver_errors(origin.shown):
        version, size = str(system.ukey(inside)), int(system.size(inside))
    if etag and version == etag:
        return None
    staged, digest, done = placing.file(path, size), hashlib.sha256(), 0
    with driver_errors(origin.shown), system.open(inside, "rb") as file:
        while chunk := file.read(CHUNK):
            staged.write(done, chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, max(done, size))
    if done != size:
        raise SourceError(
            f"the transfer of {escape(origin.shown)} broke off: {done} of {size} bytes were received.",
            hint="Try again.",
        )
    if sha256 and digest.hexdigest() != sha256:
        raise SourceError(
            f"{escape(origin.shown)} has the wrong content: its SHA-256 is {digest.hexdigest()}, not {sha256}.",
            hint="Compare the expected SHA-256 with the one that the publisher gives, or fetch the file again.",
        )
    staged.flush(size)
    return DownloadedFile(staged, digest.hexdigest(), version)
