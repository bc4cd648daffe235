"""A file in the hub's cache, held against what the hub calls it.

The cache names a file by its ETag: SHA-256 of what is under LFS, git's SHA-1 of all else (``huggingface_hub``,
"Understand caching"). The client itself checks a download's length alone.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass, replace

from ...errors import SourceError
from ...util.text import escape
from ..read.base import File
from ..read.hugging_face.answers import is_digest
from ..read.uri import open_source

__all__ = ["Blob", "read_blob"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """One file, read whole; ``checked`` is what its bytes were held against: "sha256", "git" or, for nothing, "".

    ``again`` says that the cache had it with other bytes, so that it was fetched a second time.
    """

    path: str
    size: int
    sha256: str
    checked: str = ""
    again: bool = False


def read_blob(path: str, said: str = "") -> Blob | None:
    """Read a file; returns None where its bytes are not what is ``said``: a SHA-256, or git's SHA-1 of it."""
    found, git = _digests(path)
    if not is_digest(said):
        return found
    kind, digest = ("sha256", found.sha256) if len(said) == len(found.sha256) else ("git", git)
    return replace(found, checked=kind) if said == digest else None


def _digests(path: str) -> tuple[Blob, str]:
    """Return what a file is, and git's SHA-1 of it."""
    file = open_source(path)
    if not isinstance(file, File):
        raise SourceError(f"{escape(path)} is a folder.")
    with closing(file):
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        for offset in range(0, file.size, CHUNK):
            chunk = file.read(offset, min(CHUNK, file.size - offset))
            sha256.update(chunk)
            git.update(chunk)
    return Blob(os.path.abspath(path), file.size, sha256.hexdigest()), git.hexdigest()
