"""Checks the cache of huggingface_hub: no link may lead to other folders, and files must match their digests.

The folder ``models--ORG--NAME`` of a repository has files ``blobs/DIGEST``, links ``snapshots/COMMIT/PATH`` to these
files, and the folders ``refs``, ``trees`` and ``.no_exist``. The folder ``.locks`` is next to it (``huggingface_hub``,
"Understand caching"). huggingface_hub itself follows every link in its cache, wherever it leads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from ...errors import OutputError, SourceError
from ...util.text import escape
from ..read.base import File
from ..read.hugging_face.answers import is_digest
from ..read.uri import open_source

__all__ = ["CachedFile", "blob_of", "cache_base", "check_cache", "check_kept", "read_blob", "remove_kept"]

# Checks a file of the hub's cache against the digest in its name.
#
# The cache names a file by its ETag: SHA-256 for files in LFS, git's SHA-1 for all others (``huggingface_hub``,
# "Understand caching"). huggingface_hub itself checks only the length of a download.

CHUNK = 1 << 20


@dataclass(frozen=True)
class CachedFile:
    """A file that was read completely; ``checked`` is the kind of digest that it matched: "sha256", "git" or "" (none).

    ``again`` is True if the cache had wrong bytes, from this run or an earlier one, so that the file was fetched again.
    """

    path: str
    size: int
    sha256: str
    checked: str = ""
    again: bool = False


def read_blob(path: str, expected: str = "") -> CachedFile | None:
    """Read a file, and return its path, size and SHA-256; None if its digest is not ``expected``.

    ``expected`` is a SHA-256 or git's SHA-1. If it is neither of them, the digest is not compared.
    """
    found, git = _digests(path)
    if not is_digest(expected):
        return found
    kind, digest = ("sha256", found.sha256) if len(expected) == len(found.sha256) else ("git", git)
    return replace(found, checked=kind) if expected == digest else None


def _digests(path: str) -> tuple[CachedFile, str]:
    """Return the description of a file (with size and SHA-256), and the file's SHA-1 as git computes it.

    Raises SourceError if the path is a folder or cannot be read.
    """
    file = open_source(path)
    if not isinstance(file, File):
        raise SourceError(f"{escape(path)} is a folder.")
    with closing(file):
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        for offset in range(0, file.size, CHUNK):
            chunk = file.read(offset, min(CHUNK, file.size - offset))
            sha256.update(chunk)
            git.update(chunk)
    return CachedFile(os.path.abspath(path), file.size, sha256.hexdigest()), git.hexdigest()


_ALLOWED: dict[str, Callable[[str], object]] = {
    "snapshots": lambda path: blob_of(path),
    "blobs": lambda path: not os.path.isdir(path),  # links to files of a store that all repositories share
}
"""{folder in which links are allowed: function that returns a true value for the path of a link that is allowed}."""


def cache_base(cache: str | None) -> str:
    """Return the folder of a cache with all links resolved; '' or None is huggingface_hub's default cache."""
    from huggingface_hub import constants

    return os.path.realpath(os.path.expanduser(cache or constants.HF_HUB_CACHE))


def check_cache(repository: str, cache: str | None) -> None:
    """Raise OutputError if huggingface_hub would write through a link in its cache, or wait for ever on a FIFO.

    Links from snapshots to blobs are allowed, and links from blobs to other files.
    """
    base = cache_base(cache)
    name = _folder_name(repository)
    if os.path.islink(tag := os.path.join(base, "CACHEDIR.TAG")):
        raise _is_link(tag)
    for parts in ((".locks",), (".locks", name), (name,)):
        if os.path.islink(path := os.path.join(base, *parts)):
            raise _is_link(path)
    _check_below(os.path.join(base, ".locks", name), _never)
    storage = os.path.join(base, name)
    with suppress(FileNotFoundError), os.scandir(storage) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise _is_link(entry.path)
            _check_below(entry.path, _ALLOWED.get(entry.name, _never))


def check_kept(path: str, repository: str, commit: str, file: str, cache: str | None) -> None:
    """Raise SourceError if ``path``, where huggingface_hub stored ``file``, is not the right place in its cache.

    The right place follows from the repository, the commit and the name of the file.
    """
    kept = os.path.join(cache_base(cache), _folder_name(repository), "snapshots", commit, *file.split("/"))
    if os.path.abspath(path) != kept:
        raise SourceError(
            f"huggingface_hub stored {escape(file)} as {escape(path)}, which is not its place in the cache: it is not "
            "used."
        )


def blob_of(path: str) -> str:
    """Return the path of the blob to which ``path``, a file of a snapshot, links; '' if it does not link to a blob.

    Only one link is followed: a blob may itself link to a folder that the caches of all repositories share.
    """
    if not os.path.islink(path):
        return ""
    found = os.path.abspath(os.path.join(os.path.dirname(path), os.readlink(path)))
    blobs = os.path.join(path.partition("/snapshots/")[0], "blobs")
    return found if os.path.dirname(found) == blobs and is_digest(os.path.basename(found)) else ""


def remove_kept(path: str) -> None:
    """Remove ``path``, a file of a snapshot in the cache, and the blob to which it links.

    The blob is removed so that no other commit in the cache uses its bytes. Nothing is removed if a folder in ``path``
    is a link.
    """
    folder = os.path.dirname(path)
    for name in filter(None, (blob_of(path), path)) if os.path.realpath(folder) == folder else ():
        with suppress(OSError):
            os.unlink(name)


def _folder_name(repository: str) -> str:
    return f"models--{repository.replace('/', '--')}"


def _never(path: str) -> bool:
    return False


def _check_below(folder: str, allowed: Callable[[str], object]) -> None:
    """Raise OutputError if a folder contains anything but regular files, folders and allowed links.

    ``allowed`` is called with the path of each link, and returns a true value if the link is allowed.
    """
    waiting = [folder]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if not allowed(entry.path):
                        raise _is_link(entry.path)
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif not entry.is_file():
                    raise OutputError(f"{escape(entry.path)} is not a regular file, so it is not read.")


def _is_link(path: str) -> OutputError:
    return OutputError(
        f"{escape(path)} is a link; nothing is written through it.",
        hint="Remove the link, or set HF_HUB_CACHE to the folder that has the files.",
    )
