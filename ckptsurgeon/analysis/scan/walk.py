"""Scans a file, or the files of a folder in natural order. Links that leave the folder are reported, not followed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from ...errors import CheckpointError, SourceError
from ...formats.base import limits
from ...formats.base.header import no_collection
from ...storage.read.base import File, Folder
from ...storage.read.remote import is_sent_whole, notes_of
from ...storage.read.uri import open_source, page_notes, scheme_of, shown
from ...util.text import count, escape, human_bytes, listing, natural_key
from .findings import Fault, Finding, Scan
from .judge import look_at
from .missing import missing_notes

__all__ = ["FoundFile", "far_files_of", "files_of", "scan_path"]

_BLOBS = "blobs"
_GIT = ".git"


def _not_opened() -> File:
    raise SourceError("This is not a regular file, and only regular files are opened.")


@dataclass(frozen=True)
class _ScannedFolder:
    """The path of the scanned folder with links resolved, and the paths of the subfolders that were skipped."""

    path: str
    skipped: list[str]


@dataclass(frozen=True)
class FoundFile:
    """A file in a folder, or something else that is not opened.

    ``path`` is relative to the folder. ``why`` is the reason if it must not be opened.
    """

    path: str
    why: str = ""
    open: Callable[[], File] = _not_opened


def files_of(root: str, skipped: list[str]) -> Iterator[FoundFile]:
    """Yield the files of a folder and its subfolders; raises SourceError if there are too many.

    Whatever must not be opened is yielded with the reason: links to folders, links out of the folder, devices, and
    folders that are too deep. Folders named ``.git`` are skipped; their paths are appended to ``skipped``.
    """
    return _bounded(_walk(root, "", _ScannedFolder(os.path.realpath(root), skipped), 0), root)


def far_files_of(folder: Folder, uri: str) -> Iterator[FoundFile]:
    """Yield the files of a remote folder and its subfolders; raises SourceError if there are too many.

    Folders that cannot be listed or are too deep are yielded with the reason.
    ``uri`` is the address as the user wrote it, perhaps with credentials. All files of a Hugging Face repository are
    read at the same commit as ``folder``.
    """
    return _bounded(_walk_far(folder, folder.uri if scheme_of(uri) == "hf" else uri, "", 0), folder.uri)


def _bounded(found: Iterator[FoundFile], root: str) -> Iterator[FoundFile]:
    for number, one in enumerate(found):
        if number >= limits.SCAN_FILES:
            raise SourceError(
                f"{escape(root)} has more than {limits.SCAN_FILES} files.", hint="Scan its subfolders one by one."
            )
        yield one


def _walk_far(folder: Folder, uri: str, below: str, depth: int) -> Iterator[FoundFile]:
    try:
        names, folders = folder.names(), folder.folders()
    except SourceError as error:
        yield FoundFile(below.rstrip("/") or ".", error.said)
        return
    for name in sorted({*names, *folders}, key=natural_key):
        path = f"{below}{name}"
        if name in names:
            yield FoundFile(path, open=partial(folder.file, name))
        elif depth >= limits.SCAN_FOLDERS:
            yield FoundFile(path, f"it is over {limits.SCAN_FOLDERS} folders deep")
        else:
            yield from _inside_far(f"{uri.rstrip('/')}/{name}", path, depth + 1)


def _inside_far(uri: str, path: str, depth: int) -> Iterator[FoundFile]:
    try:
        inner = open_source(uri)
    except CheckpointError as error:
        yield FoundFile(path, error.said)
        return
    if isinstance(inner, File):
        yield FoundFile(path, open=lambda: inner)
    else:
        yield from _walk_far(inner, uri, f"{path}/", depth)


def _walk(root: str, below: str, home: _ScannedFolder, depth: int) -> Iterator[FoundFile]:
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            listed = sorted(entries, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        yield FoundFile(below or ".", f"it cannot be listed: {error.strerror}")
        return
    for entry in listed:
        path = os.path.join(below, entry.name)
        if entry.is_symlink():
            yield _linked(os.path.join(root, path), path, home.path)
        elif entry.is_dir(follow_symlinks=False) and entry.name == _GIT:
            home.skipped.append(path)
        elif entry.is_dir(follow_symlinks=False):
            if depth >= limits.SCAN_FOLDERS:
                yield FoundFile(path, f"it is over {limits.SCAN_FOLDERS} folders deep")
            else:
                yield from _walk(root, path, home, depth + 1)
        else:
            why = "" if entry.is_file(follow_symlinks=False) else "it is not a regular file"
            yield FoundFile(path, why, partial(_open, os.path.join(root, path)))


def _linked(link: str, path: str, home: str) -> FoundFile:
    target = os.path.realpath(link)
    try:
        os.stat(target)
    except FileNotFoundError:
        return FoundFile(path, "it is a link to a file that does not exist")
    except OSError as error:
        return FoundFile(path, f"it is a link whose target cannot be opened: {error.strerror}")
    if not _belongs(target, home):
        return FoundFile(
            path, f"it is a link to {target}, outside the scanned folder: scan this target by its own path"
        )
    why = (
        "it is a link to a folder within the scanned folder: such links are not followed"
        if os.path.isdir(target)
        else ""
    )
    return FoundFile(path, why, partial(_open, link))


def _open(path: str) -> File:
    file = open_source(path)
    assert isinstance(file, File)  # ``found`` has no folders: they were expanded before
    return file


def _belongs(target: str, home: str) -> bool:
    """Return whether the target of a link may be read: it is in the scanned folder ``home``.

    If ``home`` is a snapshot in a Hugging Face cache, the target may also be in the blobs folder of the same model.
    """
    if target == home or target.startswith(home.rstrip(os.sep) + os.sep):
        return True
    parts = home.split(os.sep)
    if "snapshots" not in parts:
        return False
    repository = os.sep.join(parts[: len(parts) - 1 - parts[::-1].index("snapshots")])
    return os.path.dirname(target) == os.path.join(repository, _BLOBS)


# Scanning a file or a folder.

Progress = Callable[[int, int], None]


def scan_path(path: str, progress: Progress | None = None) -> Scan:
    """Scan a file, or every file of a folder and its subfolders.

    Raises SourceError if the path cannot be read, or if the folder has too many files.
    """
    source = open_source(path)
    if isinstance(source, File):
        with closing(source):
            seen = tuple(_look(source.name, source))
            return Scan(shown(path), 1, source.size, seen, (*page_notes(path), *notes_of(source)))
    found: list[Finding] = []
    skipped: list[str] = []
    whole: dict[str, int] = {}
    nbytes = 0
    listed = _listed(source, path, skipped)
    for number, one in enumerate(listed):
        size, findings, is_whole = _one(one)
        nbytes += size
        found += findings
        if is_whole:
            whole[one.path] = size
        if progress is not None:
            progress(number + 1, len(listed))
    missing = missing_notes({one.path: one.open for one in listed})
    left = [f"not scanned: {', '.join(skipped)}"] if skipped else []
    if scheme_of(source.uri) == "hf":
        from ...storage.read.hub import notes_on_cache

        left += notes_on_cache(source.uri, every=True)
    return Scan(shown(path), len(listed), nbytes, tuple(found), (*left, *missing, *_whole_notes(whole)))


def _whole_notes(sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield a note on files that were fetched as a whole; ``sizes`` is {path: size in bytes}."""
    if sizes:
        were = "1 file was" if len(sizes) == 1 else f"{count(len(sizes), 'file')} were"
        yield (
            f"the server does not support range requests: {were} fetched as a whole "
            f"({human_bytes(sum(sizes.values()))}): {listing([*sizes], 3, where='')}"
        )


def _listed(source: Folder, path: str, skipped: list[str]) -> list[FoundFile]:
    here = getattr(source, "path", None)
    return list(far_files_of(source, path) if here is None else files_of(here, skipped))


def _one(one: FoundFile) -> tuple[int, list[Finding], bool]:
    """Scan one file of a folder; returns its size in bytes, its findings, and whether its server sent the whole file.

    A server sends the whole file if it does not support range requests. The size is 0 if the file was not opened.
    """
    if one.why:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", one.why))], False
    try:
        file = one.open()
    except CheckpointError as error:
        return 0, [Finding(one.path, "", "not opened", fault=Fault("unreadable", error.said))], False
    with closing(file):
        return file.size, _look(one.path, file), is_sent_whole(file)


def _look(path: str, file: File) -> list[Finding]:
    with no_collection():
        return look_at(path, file).found
