"""Puts several files in place, or none: if one fails, the folders that were created for them are removed, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import sync_folder
from ..write.output_paths import check_output, output_error, temp_name
from ..write.staged_file import StagedFile, temp_file

__all__ = ["FileTransaction", "check_no_links", "entries", "entry_of", "is_same_file", "making_folders"]

# Checks whether two paths are one file: replacing one of them would destroy the other.

_MOST_LINKS = 40
"""The most links that Linux follows in one path (``path_resolution(7)``)."""


def is_same_file(source: str, path: str) -> bool:
    """Return whether ``source`` is the file at ``path``, or a symbolic link that leads to ``path``.

    In both cases, a link at ``path`` to ``source`` would lead to itself. Hard links to the same file count as the same
    file; two symbolic links to the same target do not.
    """
    if not os.path.lexists(path):
        return False
    return entry_of(path) in entries(source) or (not os.path.islink(path) and os.path.samefile(source, path))


def entries(path: str) -> Iterator[str]:
    """Yield every path that opening ``path`` leads through: ``path`` itself, then the target of each link."""
    for _ in range(_MOST_LINKS):
        yield entry_of(path)
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def entry_of(path: str) -> str:
    """Return ``path`` with all links in its folders resolved; its last part may still be a link."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder or "."), name)


# Makes folders, and removes them again if the block fails.


@contextmanager
def making_folders() -> Iterator[Callable[[str], None]]:
    """Yield a function that creates a folder and its parents; if the block fails, the new folders are removed.

    The function raises OutputError if a folder cannot be created.
    """
    made: list[str] = []

    def make(folder: str) -> None:
        path = os.path.abspath(folder)
        while not os.path.lexists(path):
            made.append(path)
            path = os.path.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {escape(folder)}: {error.strerror}.") from error

    try:
        yield make
    except BaseException:
        for path in sorted(made, key=len, reverse=True):
            with suppress(OSError):
                os.rmdir(path)
        raise


def check_no_links(folder: str, name: str) -> None:
    """Raise OutputError if a folder between ``folder`` and the file ``name`` is a link, which may lead elsewhere."""
    parts = name.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        path = os.path.join(folder, *parts[:depth])
        if os.path.islink(path):
            raise OutputError(f"{escape(path)} is a link; nothing is written through it.", hint="Name another folder.")


@dataclass(frozen=True)
class _Move:
    """One change: ``temp`` is moved to ``path``, or ``path`` becomes a link to ``link``, or ``path`` is removed."""

    path: str
    temp: str = ""
    link: str = ""


class FileTransaction:
    """A list of changes: new files, new links and removals. ``put`` carries them out in the order of the list.

    If a run is killed during ``put``, perhaps only the first changes were made. So add a fetched file before the record
    of its origin: a file without a record, or with an older record, counts as a file of unknown origin.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._moves: list[_Move] = []

    def file(self, path: str, size: int | None) -> StagedFile:
        """Return a temp file that ``put`` moves to ``path``; the caller writes and flushes it. Raises OutputError."""
        staged = self._stack.enter_context(temp_file(path, size))
        self._moves.append(_Move(path, temp=staged.path))
        return staged

    def text(self, path: str, text: str) -> None:
        """Write a small temp file that ``put`` moves to ``path``; raises OutputError."""
        data = text.encode("utf-8", "surrogatepass")
        check_output(path, (), force=True, folder=False)
        staged = self.file(path, len(data))
        staged.write(0, data)
        staged.flush(len(data))

    def link(self, source: str, path: str) -> None:
        """Make ``path`` an absolute symbolic link to ``source`` when ``put`` is called."""
        self._moves.append(_Move(path, link=source))

    def remove(self, path: str) -> None:
        """Remove the file or link at ``path`` when ``put`` is called."""
        if os.path.lexists(path):
            self._moves.append(_Move(path))

    def put(self) -> None:
        """Carry out all changes; if one fails, undo the earlier changes and raise OutputError.

        On file systems without hard links, the earlier changes are not undone.
        """
        self._check_links()
        with _undone_on_failure(self._moves) as ready:
            for move in ready:
                try:
                    _carry_out(move)
                except OSError as error:
                    raise output_error(move.path, error) from error
            for folder in {os.path.dirname(os.path.abspath(move.path)) for move in self._moves}:
                sync_folder(folder)

    def _check_links(self) -> None:
        """Raise OutputError if a new link leads to a path that ``put`` changes: then two links could form a loop."""
        replaced = {entry_of(move.path) for move in self._moves}
        for move in self._moves:
            if move.link and not replaced.isdisjoint(entries(move.link)):
                raise OutputError(
                    f"{escape(move.path)} would be a link to {escape(move.link)}, which the same call replaces.",
                    hint='Pass local_strategy="copy" to copy the file that is there now.',
                )


def _carry_out(move: _Move) -> None:
    if move.temp:
        os.replace(move.temp, move.path)
    elif move.link:
        _link(move.link, move.path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(move.path)


def _link(source: str, path: str) -> None:
    """Make a symbolic link to ``source`` at ``path``; a file or link at ``path`` is replaced atomically."""
    temp = temp_name(path)
    try:
        os.symlink(source, temp)
        os.replace(temp, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temp)
        raise


@contextmanager
def _undone_on_failure(moves: list[_Move]) -> Iterator[Iterator[_Move]]:
    """Yield an iterator over the moves; if the block fails, the files that they replaced are put back.

    Before the iterator yields a move, it makes a hard link to the file that the move will replace.
    """
    kept: list[tuple[str, str | None]] = []

    def ready() -> Iterator[_Move]:
        for move in moves:
            kept.append((move.path, _keep(move.path)))
            yield move

    try:
        yield ready()
    except BaseException:
        for path, old in reversed(kept):
            with suppress(OSError):
                os.replace(old, path) if old else os.unlink(path) if old == "" else None
        raise
    finally:
        for _, old in kept:
            with suppress(OSError):
                os.unlink(old or "")


def _keep(path: str) -> str | None:
    """Make a hard link to a file, and return the link's path.

    Returns '' if the file does not exist, None if hard links are impossible.
    """
    temp = temp_name(path)
    try:
        os.link(path, temp, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    except OSError:
        return None
    return temp
