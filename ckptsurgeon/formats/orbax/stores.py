"""Reads the values of an item of an Orbax checkpoint by key: from single files, or from its database."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Protocol

from ...errors import FormatError
from ...storage.read.local import LocalFolder
from ...util.text import escape
from .files import MANIFEST, StoredFile
from .ocdbt import Database

__all__ = ["ChunkStore", "FolderStore", "open_store"]


class ChunkStore(Protocol):
    """Bytes by key, such as ``dense.kernel/.zarray`` and ``dense.kernel/0.0``; the interface of all stores."""

    def read(self, key: str) -> bytes | None:
        """Return the bytes that are stored for ``key``; None if there are none."""
        ...

    def has(self, key: str) -> bool:
        """Return whether bytes are stored for ``key``."""
        ...


class FolderStore:
    """The files in the folder of an item, by their paths; ``files`` has their sizes."""

    def __init__(self, folder: LocalFolder, files: Mapping[str, StoredFile]) -> None:
        self._folder, self._files = folder, files

    def read(self, key: str) -> bytes | None:
        """Return the bytes of the file ``key``; None if there is none."""
        if key not in self._files:
            return None
        with closing(self._folder.file(key)) as file:
            return file.read(0, file.size)

    def has(self, key: str) -> bool:
        """Return whether the folder has the file ``key``."""
        return key in self._files


def open_store(folder: LocalFolder, files: Mapping[str, StoredFile]) -> ChunkStore:
    """Return the store of an item: its database if it has one, otherwise its files.

    Raises FormatError if the databases of several processes were not merged into one.
    """
    if MANIFEST in files:
        return Database(folder, files)
    apart = next((name for name in files if name.endswith(f"/{MANIFEST}")), "")
    if apart:
        raise FormatError(
            f"{escape(folder.uri)} has no {MANIFEST}, but {escape(apart)}: the save or a copy was not finished.",
            hint="Pass another step of the run, or copy the whole folder again.",
            rule="orbax unfinished",
        )
    return FolderStore(folder, files)
