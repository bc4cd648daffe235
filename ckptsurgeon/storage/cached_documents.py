"""Keeps small JSON documents that took long to compute in the user's cache folder.

An entry is used only if its file is complete, belongs to this user and contains its key; otherwise the document is
computed and stored again. Failures to read or write the cache are never errors: the entry is then treated as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import time
from contextlib import suppress
from typing import Any

__all__ = ["cache_folder", "cached_document", "document_key", "keep_document"]

FOLDER, SUFFIX, TEMP = "builds", ".json", ".tmp"
MOST_FILES, MOST_BYTES, MOST_IN_ONE = 200, 128 << 20, 16 << 20
"""The largest number of entries in the cache, of bytes of all entries together, and of bytes of one entry."""
OLD_S = 24 * 3600
"""A temp file that is older than this many seconds was left by a killed run, and is removed."""
OFF = "CKPTSURGEON_NO_BUILDS"
"""The environment variable that switches this cache off if it is not empty."""


def cache_folder() -> str:
    """Return the folder of this user's cache; every file in it can be fetched or computed again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.abspath(os.environ.get("CKPTSURGEON_CACHE") or os.path.join(home, "ckptsurgeon"))


def document_key(said: Any) -> str:
    """Return the cache key of a document; ``said`` is the data from which the document is computed.

    The key is the SHA-256 of this data as JSON. Returns "" if the cache is switched off, or if ``said`` is not plain
    JSON data.
    """
    if os.environ.get(OFF) or not _is_plain(said):
        return ""
    return _digest(said)


def _is_plain(value: Any) -> bool:
    """Return whether a value stays the same if it is stored as JSON and read again; a dict with int keys does not."""
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 64  # Python writes no int of more than 4300 digits
    return value is None or type(value) in (str, float, bool)


def cached_document(key: str) -> Any:
    """Return the document with this key.

    Returns None if it is not cached, or if its file is damaged or belongs to another user.
    """
    if not key:
        return None
    path = os.path.join(cache_folder(), FOLDER, key + SUFFIX)
    try:
        entry = json.loads(_own_bytes(path))
        document = entry["document"]
        if entry["key"] != key or entry["sha256"] != _digest(document):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    with suppress(OSError):
        os.utime(path)  # the entries that were used last are kept
    return document


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


def _own_bytes(path: str) -> bytes:
    """Return the bytes of a regular file that belongs to this user; raises OSError for a link or a large file, too."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > MOST_IN_ONE:
            raise OSError(path)
        return file.read()


def keep_document(key: str, document: Any) -> bool:
    """Store a document atomically, and return whether it was stored.

    If the cache is full, the least recently used entries are removed.
    """
    if not key or not _is_plain(document):
        return False
    entry = {"key": key, "sha256": _digest(document), "document": document}
    body = json.dumps(entry, separators=(",", ":")).encode()
    if len(body) > MOST_IN_ONE:
        return False
    folder = os.path.join(cache_folder(), FOLDER)
    temp = os.path.join(folder, f"{key}.{secrets.token_hex(4)}{TEMP}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(body)
            os.replace(temp, os.path.join(folder, key + SUFFIX))
        except BaseException:
            os.unlink(temp)
            raise
    except OSError:
        return False
    with suppress(OSError):
        _sweep(folder)
    return True


def _sweep(folder: str) -> None:
    """Remove the least recently used entries if the cache exceeds its limits; remove the temp files of killed runs."""
    kept: list[tuple[float, int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if entry.name.endswith(SUFFIX):
                    kept.append((found.st_mtime, found.st_size, entry.path))
                elif entry.name.endswith(TEMP) and time.time() - found.st_mtime > OLD_S:
                    os.unlink(entry.path)
    total = 0
    for place, (_, size, path) in enumerate(sorted(kept, reverse=True)):
        total += size
        if place >= MOST_FILES or total > MOST_BYTES:
            with suppress(OSError):
                os.unlink(path)
