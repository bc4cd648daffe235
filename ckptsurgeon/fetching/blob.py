"""A file in the hub's cache, held against what the hub calls it.

The cache names a file by its ETag: SHA-256 of what is under LFS, git's SHA-1 of all else (``huggingface_hub``,
"Understand caching"). The client itself checks a download's length alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

from ..errors import SourceError
from ..text import escape

__all__ = ["Blob", "called", "is_digest", "read_blob", "remove_blob"]

CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


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
    if _SHA256.fullmatch(said):
        return replace(found, checked="sha256") if said == found.sha256 else None
    if _GIT.fullmatch(said):
        return replace(found, checked="git") if said == git else None
    return found


def called(path: str) -> str:
    """Return the name of the blob that a file of a snapshot is a link to, '' where it is none.

    Only one link is followed: a blob may itself be a link into a store that the caches of all repositories share.
    """
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else ""


def is_digest(name: str) -> bool:
    """Whether a name can be a digest that the hub has said."""
    return bool(_SHA256.fullmatch(name) or _GIT.fullmatch(name))


def remove_blob(path: str) -> None:
    """Remove a file from the cache: the blob, so that no commit has it, and the link to it."""
    if os.path.islink(path):
        with suppress(OSError):
            os.unlink(os.path.join(os.path.dirname(path), os.readlink(path)))
    with suppress(OSError):
        os.unlink(path)


def _digests(path: str) -> tuple[Blob, str]:
    """Return what a file is, and git's SHA-1 of it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := _read(file):
            sha256.update(chunk)
            git.update(chunk)
    return Blob(os.path.abspath(path), size, sha256.hexdigest()), git.hexdigest()


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise SourceError(f"{escape(file.name)} cannot be read: {error.strerror or error}.") from error
