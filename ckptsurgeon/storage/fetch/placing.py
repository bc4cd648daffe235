"""Puts several files in place, all or none, and removes folders that it made if it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ...errors import OutputError
from ...util.text import escape
from ..write.output_checks import check_output, output_error
from ..write.staging import StagedFile, temp_file
from ..write.temp import sync_folder, temp_name

__all__ = ["FileTransaction", "check_no_links", "entries", "entry_of", "is_same_file", "making_folders"]

# Checks whether two paths are one file: replacing one of them would destroy the other.

_MOST_LINKS = 40
"""How many links Linux follows (``path_resolution(7)``)."""


def is_same_file(source: str, path: str) -> bool:
    """Return whether ``source`` is the file at ``path`` or links through it: put there, it would link to itself.

    A link at ``path`` with the same target as ``source`` is a different file. A hard link is the same file.
    """
    if not os.path.lexists(path):
        return False
    return entry_of(path) in entries(source) or (not os.path.islink(path) and os.path.samefile(source, path))


def entries(path: str) -> Iterator[str]:
    """Yield every path that opening a file goes through: its own, and those of the links that it follows."""
    for _ in range(_MOST_LINKS):
        yield entry_of(path)
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def entry_of(path: str) -> str:
    """Return the canonical path of a directory entry: its folder is resolved, its own name is not."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder or "."), name)


# Makes folders, and removes them again if the block fails.


@contextmanager
def making_folders() -> Iterator[Callable[[str], None]]:
    """Give a function that makes a folder with its parents; if the block fails, the folders made are removed."""
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
    """Raise OutputError if a part of the path from a folder to a file in it is a link, which may lead out of it."""
    parts = name.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        path = os.path.join(folder, *parts[:depth])
        if os.path.islink(path):
            raise OutputError(f"{escape(path)} is a link; nothing is written through it.", hint="Name another folder.")


@dataclass(frozen=True)
class _Move:
    """One change of a path: a temp file moves there, a link is made, or, with neither, the path is removed."""

    path: str
    temp: str = ""
    link: str = ""


class FileTransaction:
    """Files, links and removals that are carried out together and in order by ``put``.

    A run that is killed in ``put`` has carried out the first of them. Add the record of a file after the file: then
    a file without its record, or with an older one, counts as a file of unknown origin.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._moves: list[_Move] = []

    def file(self, path: str, size: int | None) -> StagedFile:
        """Return a temp file for ``path``, which the caller writes and flushes; raises OutputError."""
        staged = self._stack.enter_context(temp_file(path, size))
        self._moves.append(_Move(path, temp=staged.path))
        return staged

    def text(self, path: str, text: str) -> None:
        """Write a small file for ``path``; raises OutputError."""
        data = text.encode("utf-8", "surrogatepass")
        check_output(path, (), force=True, folder=False)
        staged = self.file(path, len(data))
        staged.write(0, data)
        staged.flush(len(data))

    def link(self, source: str, path: str) -> None:
        """Make an absolute symbolic link from ``path`` to ``source``."""
        self._moves.append(_Move(path, link=source))

    def remove(self, path: str) -> None:
        """Remove what is at ``path``."""
        if os.path.lexists(path):
            self._moves.append(_Move(path))

    def put(self) -> None:
        """Carry out all changes or, if one fails, none; raises OutputError.

        On file systems without hard links, changes before the failure stay.
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
        """Raise OutputError for a link to a file that is itself replaced: two paths may then link to each other."""
        replaced = {entry_of(move.path) for move in self._moves}
        for move in self._moves:
            if move.link and not replaced.isdisjoint(entries(move.link)):
                raise OutputError(
                    f"{escape(move.path)} would be a link to {escape(move.link)}, which the same call replaces.",
                    hint='local_strategy="copy" takes what is there now.',
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
    """Make a link that replaces what was at ``path`` in one step."""
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
    """Yield the moves one by one, and keep what each replaces until all are done."""
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
    """Return a second name of the file at a path: '' if there is none, None if the file system has no hard links."""
    temp = temp_name(path)
    try:
        os.link(path, temp, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    except OSError:
        return None
    return temp
