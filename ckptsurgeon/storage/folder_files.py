"""Lists the files of a folder: the files with certain suffixes, broken links, or everything in it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..util.text import natural_key
from .read.base import Folder, Source
from .read.local import LocalFolder

__all__ = ["broken_links", "contents", "files_with"]


def files_with(suffixes: Sequence[str], folder: str) -> tuple[list[str], int]:
    """Return the paths of a folder's files with these suffixes, in natural order, and the number of its other files.

    Hidden files do not count, and subfolders are not read.
    """
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    files = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    found = sorted((name for name in files if name.lower().endswith(tuple(suffixes))), key=natural_key)
    return [os.path.join(folder, name) for name in found], len(files) - len(found)


def broken_links(source: Source) -> list[str]:
    """Return the names of the links in a folder whose targets do not exist, sorted.

    ``LocalFolder.names`` omits them.
    """
    return source.listed(_is_broken) if isinstance(source, LocalFolder) else []


def contents(source: Folder) -> list[str]:
    """Return the names of all files and folders in a folder, sorted; the names of folders end in a slash."""
    folders = set(source.folders())
    names = source.listed(lambda entry: True) if isinstance(source, LocalFolder) else [*source.names(), *folders]
    return sorted(f"{name}/" if name in folders else name for name in names)


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
