"""The files of a folder in natural order; links that lead out of it are named and not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import SourceError
from ..formats import limits
from ..sources import Folder, open_source
from ..text import escape, natural_key

__all__ = ["Found", "files_at", "files_of"]

_BLOBS = "blobs"


@dataclass(frozen=True)
class Found:
    """A file by its path relative to the folder; ``why`` says why it is not to be opened, where that is so."""

    path: str
    why: str = ""


def files_of(root: str) -> Iterator[Found]:
    """Yield the files of a folder and of those in it. Raises SourceError where there are too many."""
    home = os.path.realpath(root)
    for number, found in enumerate(_walk(root, "", home, 0)):
        if number >= limits.SCAN_FILES:
            raise SourceError(
                f"{escape(root)} holds over {limits.SCAN_FILES} files.", hint="Scan the folders in it one by one."
            )
        yield found


def files_at(folder: Folder) -> Iterator[Found]:
    """Yield the same of a folder at an address, which is listed there. Raises SourceError where it cannot be."""
    for number, found in enumerate(_listed(folder, "", 0)):
        if number >= limits.SCAN_FILES:
            raise SourceError(
                f"{escape(folder.uri)} holds over {limits.SCAN_FILES} files.", hint="Scan the folders in it one by one."
            )
        yield found


def _listed(folder: Folder, below: str, depth: int) -> Iterator[Found]:
    yield from (Found(below + name) for name in sorted(folder.names(), key=natural_key))
    for name in sorted(folder.folders(), key=natural_key):
        if depth >= limits.SCAN_FOLDERS:
            yield Found(below + name, f"it lies over {limits.SCAN_FOLDERS} folders deep")
            continue
        inner = open_source(f"{folder.uri.rstrip('/')}/{name}")
        if isinstance(inner, Folder):
            yield from _listed(inner, f"{below}{name}/", depth + 1)


def _walk(root: str, below: str, home: str, depth: int) -> Iterator[Found]:
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            listed = sorted(entries, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        yield Found(below or ".", f"it cannot be listed: {error.strerror}")
        return
    for entry in listed:
        path = os.path.join(below, entry.name)
        if entry.is_symlink():
            yield _linked(os.path.join(root, path), path, home)
        elif entry.is_dir(follow_symlinks=False):
            if depth >= limits.SCAN_FOLDERS:
                yield Found(path, f"it lies over {limits.SCAN_FOLDERS} folders deep")
            else:
                yield from _walk(root, path, home, depth + 1)
        else:
            yield Found(path, "" if entry.is_file(follow_symlinks=False) else "it is no regular file")


def _linked(link: str, path: str, home: str) -> Found:
    target = os.path.realpath(link)
    if not os.path.exists(target):
        return Found(path, "it is a link to nothing")
    if not _belongs(target, home):
        return Found(path, f"it is a link out of the folder, to {target}: scan that by its own name")
    return Found(path, "it is a link to a folder in the folder" if os.path.isdir(target) else "")


def _belongs(target: str, home: str) -> bool:
    """Return whether a link leads to where it may: into the folder, or from a hub cache's snapshot to its blobs."""
    if target == home or target.startswith(home.rstrip(os.sep) + os.sep):
        return True
    parts = home.split(os.sep)
    if "snapshots" not in parts:
        return False
    repository = os.sep.join(parts[: len(parts) - 1 - parts[::-1].index("snapshots")])
    return os.path.dirname(target) == os.path.join(repository, _BLOBS)
