"""Describes fetched files, and stores the origin of each collected file in a record next to the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import PlanError
from ...util.short_repr import Brief
from ...util.text import escape
from ..small_files import open_file
from .cache import CachedFile
from .origin import FetchOrigin

__all__ = [
    "FetchRecord",
    "Fetched",
    "FetchedFile",
    "as_text",
    "check_unchanged_since",
    "fetched_files",
    "is_outdated",
    "is_unchanged",
    "notes_of",
    "read_record",
    "record_of",
    "record_path",
    "sha256_of",
]

# The files that were fetched: path, commit, and the digest that they were checked against.


@dataclass(frozen=True, repr=False)
class FetchedFile(Brief):
    """One fetched file on this machine.

    ``name`` is the file's path in the repository or folder. ``checked`` is the digest that the file matched: "sha256"
    or "git" (digests of the hub), "asked" (the SHA-256 that the user gave), or "" if it was compared with no digest.
    """

    name: str
    path: str
    size: int
    sha256: str
    checked: str


@dataclass(frozen=True, repr=False)
class Fetched(Brief):
    """The result of a fetch; functions such as ``open`` accept it in place of the path of the file or folder.

    ``uri`` has no credentials. For a hub repository, ``commit`` is the commit, whose content never changes, and ``uri``
    contains it. For any other source, ``commit`` is ''.
    """

    uri: str
    path: str
    commit: str
    files: tuple[FetchedFile, ...]
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.path

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "kind": "ckpt.fetched",
            "version": 1,
            "uri": self.uri,
            "path": self.path,
            "commit": self.commit or None,
            "files": [
                {
                    "name": one.name,
                    "path": one.path,
                    "size": one.size,
                    "sha256": one.sha256,
                    "checked": one.checked or None,
                }
                for one in self.files
            ],
            "notes": list(self.notes),
        }


def fetched_files(blobs: Mapping[str, CachedFile], paths: Mapping[str, str]) -> tuple[FetchedFile, ...]:
    """Return the fetched files with their sizes and digests.

    ``blobs`` is {name: file, as it was read}, and ``paths`` is {name: path of the file on this machine}.
    """
    return tuple(
        FetchedFile(name, paths[name], blob.size, blob.sha256, blob.checked) for name, blob in blobs.items()
    )  # fmt: skip


def notes_of(blobs: Mapping[str, CachedFile]) -> tuple[str, ...]:
    """Return notes on hub files whose bytes in the cache were wrong, and on those of which the hub has no digest."""
    again = [
        f"{escape(name)} was fetched again: its bytes in the cache differed from the hub's digest"
        for name, blob in blobs.items()
        if blob.again
    ]
    loose = [
        f"the hub has no digest of {escape(name)}: only its length was checked"
        for name, blob in blobs.items()
        if not blob.checked
    ]
    return (*again, *loose)


_MOST = 1 << 16


@dataclass(frozen=True)
class FetchRecord:
    """The record of a fetched file: where it came from, and its size, time and digest when it was put in place.

    A record contains no secrets. ``origin_sha256`` identifies the origin (``FetchOrigin.sha256``). ``fingerprint`` is
    the size and time of a local file that was copied. ``link`` is the target of a symbolic link. ``etag`` is the ETag
    of a file from a web address.
    """

    kind: str
    source: str
    origin_sha256: str
    commit: str = ""
    fingerprint: str = ""
    link: str = ""
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    etag: str = ""


def record_of(
    origin: FetchOrigin, at: str, *, commit: str = "", fingerprint: str = "", link: str = "", sha256: str = ""
) -> FetchRecord:
    """Return the record of a file that was fetched from ``origin``.

    ``at`` is the path at which the bytes of the file are now: a temp file, or the target of a link. For the other
    arguments, see ``FetchRecord``.
    """
    found = os.stat(at)
    return FetchRecord(
        origin.kind, origin.shown, origin.sha256, commit, fingerprint, link, found.st_size, found.st_mtime_ns, sha256
    )


def record_path(path: str) -> str:
    """Return the path of the record of the collected file ``path``; it is in the same folder."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.collected.json")


def read_record(path: str) -> FetchRecord | None:
    """Return the record of a collected file; None if it has no readable record."""
    with suppress(OSError, ValueError, TypeError, RecursionError), open_file(record_path(path)) as file:
        record = FetchRecord(**json.loads(file.read(_MOST)))
        if all(type(getattr(record, name)) is type(value) for name, value in asdict(_EMPTY).items()):
            return record
    return None


_EMPTY = FetchRecord("", "", "")


def as_text(record: FetchRecord) -> str:
    """Return a record as JSON text."""
    return f"{json.dumps(asdict(record), indent=1)}\n"


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: str, record: FetchRecord) -> bool:
    """Return whether a file agrees with its record: it has the recorded size, and the recorded time or digest."""
    if record.link or os.path.islink(path):
        return bool(record.link) and os.path.islink(path) and os.readlink(path) == record.link and os.path.exists(path)
    try:
        found = os.stat(path)
    except OSError:
        return False
    if found.st_size != record.size:
        return False
    return found.st_mtime_ns == record.mtime_ns or sha256_of(path) == record.sha256


def is_outdated(path: str) -> bool:
    """Return whether a file has a record, but was changed, replaced or removed after it was collected."""
    record = read_record(path)
    return record is not None and not is_unchanged(path, record)


def check_unchanged_since(path: str) -> None:
    """Raise PlanError if ckpt has fetched the file ``path``, and the file has changed since then."""
    record = read_record(path)
    if record is not None and not is_unchanged(path, record):
        raise PlanError(
            f"{escape(path)} has changed since it was collected from {escape(record.source)}.",
            hint="Fetch the file again with FetchConfig(overwrite=True), or list the changed file in paths.",
        )
