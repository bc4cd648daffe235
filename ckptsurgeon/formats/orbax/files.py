"""Lists the files of an Orbax checkpoint on this machine."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from ...errors import SourceError, UnsafeError
from ...storage.read.base import Folder
from ...storage.read.local import LocalFolder
from ...storage.read.uri import leads_out
from ...util.text import escape
from ..base import limits
from ..base.header import FilePrint

__all__ = ["MANIFEST", "NUMBERED", "StoredFile", "files_of", "local", "prints_of"]

MANIFEST = "manifest.ocdbt"
NUMBERED = re.compile(r"manifest\.[0-9a-f]{16}")
"""Matches the name of a manifest with the number of its version, in hexadecimal digits."""
_HASHED = ("_METADATA", "_CHECKPOINT_METADATA", ".zarray", "zarr.json", MANIFEST)
"""Files that describe arrays: all their bytes are in their fingerprints."""
_NOTHING = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """A regular file: its size in bytes, and its mtime in nanoseconds."""

    size: int
    mtime_ns: int


def local(folder: Folder) -> LocalFolder:
    """Return the folder if it is on this machine; raises SourceError for a folder at an address."""
    if not isinstance(folder, LocalFolder):
        raise SourceError(
            f"{escape(folder.uri)} is a checkpoint of Orbax, which is read only on this machine.",
            hint="Fetch it with ckpt fetch (from the hub, the whole repository), and pass the fetched folder.",
        )
    return folder


def files_of(folder: LocalFolder) -> dict[str, StoredFile]:
    """Return {path: file} for all files in a folder and its subfolders, sorted.

    Raises UnsafeError for a link that leads out of the folder, and if there are too many files. Raises SourceError for
    anything that is neither a file nor a folder. A database may refer to other files, but only the files that this
    function returns are read.
    """
    found: dict[str, StoredFile] = {}
    seen, waiting = 0, [""]
    while waiting:
        inner = waiting.pop()
        for entry in _entries(folder, inner):
            name = f"{inner}{entry.name}"
            seen += 1
            if seen > limits.ORBAX_FILES:
                raise UnsafeError(
                    f"{escape(folder.uri)} has over {limits.ORBAX_FILES:,} files and folders.", rule="orbax files"
                )  # fmt: skip
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{name}/")
            else:
                found[name] = _checked(folder, name)
    return dict(sorted(found.items()))


def _entries(folder: LocalFolder, inner: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(os.path.join(folder.path, inner)) as entries:
            yield from entries
    except OSError as error:
        raise SourceError(
            f"{escape(os.path.join(folder.uri, inner).rstrip('/'))} cannot be listed: {error.strerror}."
        ) from error


def _checked(folder: LocalFolder, name: str) -> StoredFile:
    path = os.path.join(folder.path, name)
    if leads_out(path, folder.path) or (os.path.islink(path) and os.path.isdir(path)):
        raise UnsafeError(
            f"{escape(folder.uri)} has a link that leads out of the folder, or to a folder: {escape(name)}.",
            hint="If the linked files belong to the checkpoint, copy the folder with cp -rL.",
            rule="outside",
        )
    with closing(folder.file(name)) as file:  # refuses what is not a regular file
        if file.unwritten and file.size > limits.EXPANSION_FREE:
            raise UnsafeError(
                f"{escape(file.uri)} has ranges that were never written: the file is incomplete.", rule="orbax files"
            )
        return StoredFile(file.size, file.mtime_ns or 0)


def prints_of(folder: LocalFolder, files: Mapping[str, StoredFile]) -> tuple[FilePrint, ...]:
    """Return the fingerprints of the files; for a file with values, only its size and time are compared."""
    return tuple(FilePrint(name, one.size, _digest(folder, name, one), one.mtime_ns, "") for name, one in files.items())


def _digest(folder: LocalFolder, name: str, one: StoredFile) -> str:
    last = name.rpartition("/")[2]
    if not (last in _HASHED or NUMBERED.fullmatch(last)) or one.size > limits.INDEX_BYTES:
        return _NOTHING
    with closing(folder.file(name)) as file:
        return hashlib.sha256(file.read(0, file.size)).hexdigest()
