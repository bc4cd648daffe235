"""Puts several files in place, all or none: all that is to be written is on disk before the first one moves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ...errors import OutputError
from ...util.text import escape
from ..write.output_checks import check_output, output_error
from ..write.staging import StagedFile, temp_file
from ..write.temp import sync_folder, temp_name
from .same import entries, entry_of

__all__ = ["Placing"]


@dataclass(frozen=True)
class _Move:
    """What comes to be at a path: a temp file, a link to another path, or, with neither, nothing."""

    path: str
    temp: str = ""
    link: str = ""


class Placing:
    """Files, links and removals that happen together and in order, when ``put`` is called.

    A run that is killed in ``put`` has done the first of them. What a file is known by comes after the file: a file
    that lacks its record, or has an older one, is of unknown origin, and is taken for nothing that it is not.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._moves: list[_Move] = []

    def file(self, path: str, size: int | None) -> StagedFile:
        """Return a temp file for ``path``, to be written and flushed; raises OutputError."""
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
        """Let an absolute symbolic link lead from ``path`` to ``source``."""
        self._moves.append(_Move(path, link=source))

    def remove(self, path: str) -> None:
        """Let nothing be at ``path``."""
        if os.path.lexists(path):
            self._moves.append(_Move(path))

    def put(self) -> None:
        """Do all of it or, where something fails, nothing; raises OutputError.

        On file systems without hard links what has moved before the failure stays.
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
        """Raise OutputError for a link to a file that is replaced: of two that lead to each other none is left."""
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
    """Make a link, and let it take the place of what was at ``path`` in one step."""
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
    """Give the moves one by one, and keep what each replaces until all are done."""
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
    """Return a second name of what is at a path: '' where nothing is, None where it cannot have one."""
    temp = temp_name(path)
    try:
        os.link(path, temp, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    except OSError:
        return None
    return temp
