"""Lists the files of an Orbax checkpoint on this machine, and reads single files or the keys of its database."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from ...errors import FormatError, SourceError, UnsafeError
from ...storage.read._descriptors import leads_out
from ...storage.read.base import Folder
from ...storage.read.local import LocalFolder
from ...util.text import escape
from ..base import limits
from ..base.header import FilePrint
from .tensorstore import Database

__all__ = ["MANIFEST", "ChunkStore", "FolderStore", "StoredFile", "files_of", "local", "open_store", "prints_of"]

MANIFEST = "manifest.ocdbt"
_HASHED = ("_METADATA", "_CHECKPOINT_METADATA", ".zarray", "zarr.json", MANIFEST)
"""Files that describe arrays: all their bytes are in their fingerprints."""
_NOTHING = hashlib.sha256().hexdigest()


class ChunkStore(Protocol):
    """A store of bytes by key, such as ``dense.kernel/.zarray`` and ``dense.kernel/0.0``."""

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a key; None if there are none."""
        ...


@dataclass(frozen=True)
class StoredFile:
    """A regular file: its size in bytes, and its mtime in nanoseconds."""

    size: int
    mtime_ns: int


def local(folder: Folder) -> LocalFolder:
    """Return the folder if it is on this machine; raises SourceError for one at an address."""
    if not isinstance(folder, LocalFolder):
        raise SourceError(
            f"{escape(folder.uri)} is a checkpoint of Orbax, which is read only on this machine.",
            hint="Fetch it with ckpt fetch, and pass the folder.",
        )
    return folder


def files_of(folder: LocalFolder) -> dict[str, StoredFile]:
    """Return all files in a folder and its subfolders by their paths, sorted.

    tensorstore opens what a database names. So raises UnsafeError for a link that leads out of the folder, for anything
    that is neither a file nor a folder, and if there are too many files.
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
                    f"{escape(folder.uri)} has over {limits.ORBAX_FILES:,} files.", rule="orbax files"
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
        raise SourceError(f"{escape(folder.uri)} cannot be listed: {error.strerror}.") from error


def _checked(folder: LocalFolder, name: str) -> StoredFile:
    path = os.path.join(folder.path, name)
    if leads_out(path) or (os.path.islink(path) and os.path.isdir(path)):
        raise UnsafeError(
            f"{escape(folder.uri)} has a link that leads out of it, or to a folder: {escape(name)}.",
            hint="Copy the folder with cp -rL, if the files are meant to be part of it.",
            rule="outside",
        )
    with closing(folder.file(name)) as file:  # refuses what is not a regular file
        if file.unwritten and file.size > limits.EXPANSION_FREE:
            raise UnsafeError(
                f"{escape(file.uri)} has ranges that were never written: the file is incomplete.", rule="orbax files"
            )
        return StoredFile(file.size, file.mtime_ns or 0)


def prints_of(folder: LocalFolder, files: Mapping[str, StoredFile]) -> tuple[FilePrint, ...]:
    """Return the fingerprints of the files; those of files with values have only sizes and times."""
    return tuple(FilePrint(name, one.size, _digest(folder, name, one), one.mtime_ns, "") for name, one in files.items())


def _digest(folder: LocalFolder, name: str, one: StoredFile) -> str:
    if name.rpartition("/")[2] not in _HASHED or one.size > limits.INDEX_BYTES:
        return _NOTHING
    with closing(folder.file(name)) as file:
        return hashlib.sha256(file.read(0, file.size)).hexdigest()


class FolderStore:
    """The files in the folder of an item; ``files`` has their sizes."""

    def __init__(self, folder: LocalFolder, files: Mapping[str, StoredFile]) -> None:
        self._folder, self._files = folder, files

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a file; None if there is none."""
        if key not in self._files:
            return None
        with closing(self._folder.file(key)) as file:
            return file.read(0, file.size)


def open_store(folder: LocalFolder, files: Mapping[str, StoredFile]) -> ChunkStore:
    """Return the store of an item: its database if it has one, otherwise its files.

    Raises FormatError if the databases of several processes were not merged into one.
    """
    if MANIFEST in files:
        return Database(folder.path)
    apart = next((name for name in files if name.endswith(f"/{MANIFEST}")), "")
    if apart:
        raise FormatError(
            f"{escape(folder.uri)} has no {MANIFEST}, but {escape(apart)}: it was not saved to the end.",
            hint="Pass another step of the run.",
            rule="orbax unfinished",
        )
    return FolderStore(folder, files)
