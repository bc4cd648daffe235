"""Finds the files of the new checkpoint, and equal files in the folder of the old checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import closing

from ...checkpoint.checkpoint import Checkpoint
from ...errors import PlanError, SourceError
from ...storage.read.base import File, Folder
from ...storage.read.uri import leads_out, open_source, scheme_of
from ...util.text import escape
from .blocks import BLOCK
from .index import OldFile

__all__ = ["NewFiles", "equal_files", "folders_in"]


def folders_in(given: str) -> list[str]:
    """Return the names of the subfolders in the folder ``given``; a patch does not contain them.

    Hidden subfolders are left out. Returns [] if ``given`` is a file.
    """
    source = open_source(given)
    if isinstance(source, Folder):
        return [name for name in source.folders() if not name.startswith(".")]
    source.close()
    return []


class NewFiles:
    """The files of the new checkpoint: all files in its folder, or the single file, whose name is ""."""

    def __init__(self, new: Checkpoint, given: str) -> None:
        source = open_source(given)
        self.folder = isinstance(source, Folder)
        self._opened: list[File] = []
        self.files: list[tuple[str, File]] = []
        handles = new.open_files()
        if not isinstance(source, Folder):
            source.close()
            self.files = list(handles.items())
            if len(self.files) != 1:
                raise SourceError(
                    f"{escape(new.path)} is one of several files of a checkpoint.",
                    hint="Use the folder that contains these files.",
                )
            return
        names = [name for name in source.names() if not name.startswith(".")]
        for name in sorted({*names, *handles}):
            if os.path.basename(name) != name:
                raise SourceError(
                    f"{escape(name)} is in a subfolder of {escape(new.path)}, but a patch cannot contain subfolders.",
                    hint="Make a separate patch of each folder.",
                )
            path = os.path.join(new.path, name)
            if not scheme_of(given) and leads_out(path):
                raise SourceError(
                    f"{escape(path)} is a link to a file outside its folder; such links are not followed.",
                    hint="Copy the file into the folder.",
                )
            if name not in handles:
                self._opened.append(source.file(name))
            self.files.append((name, handles[name] if name in handles else self._opened[-1]))

    def check_unchanged(self) -> None:
        """Raise PlanError if a file that does not belong to the open checkpoint has changed since it was opened."""
        for file in self._opened:
            if file.has_changed():
                raise PlanError(f"{escape(file.uri)} has changed since it was opened.", hint="Make the patch again.")

    def close(self) -> None:
        """Close the files that do not belong to the open checkpoint."""
        for file in self._opened:
            file.close()


def equal_files(given: str) -> Callable[[str, File], OldFile | None]:
    """Return a function that compares a new file with the file of the same name in the folder of the old checkpoint.

    The arguments of the function are the name and the open new file. If both files are equal, it returns their size
    and SHA-256, otherwise None. ``given`` is the path or address of the old checkpoint.
    """
    source = open_source(given)
    names = set(source.names()) if isinstance(source, Folder) else set()

    def same(name: str, new: File) -> OldFile | None:
        if name not in names or not isinstance(source, Folder):
            return None
        with closing(source.file(name)) as file:
            if file.size != new.size:
                return None
            digests = {_digest(one) for one in (file, new)}
        return OldFile(new.size, digests.pop()) if len(digests) == 1 else None

    return same


def _digest(file: File) -> str:
    digest = hashlib.sha256()
    for begin in range(0, file.size, BLOCK):
        digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return digest.hexdigest()
