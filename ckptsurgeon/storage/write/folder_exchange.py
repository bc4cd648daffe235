"""Atomically replaces a folder by a temp folder, and keeps the files that only the replaced folder has."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterable

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import sync_folder
from .output_paths import output_error, temp_name
from .staged_file import libc

__all__ = ["check_exchange", "names_inside", "place_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(first: str, second: str) -> None:
    """Swap two paths atomically, by renameat2(2); raises OSError if the system or file system does not support this."""
    call = getattr(libc(), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def check_exchange(path: str) -> None:
    """Raise OutputError if no folder can be made next to ``path``, or no folder replaced atomically there."""
    temp = temp_name(path)
    made = [os.path.join(temp, name) for name in ("a", "b")]
    try:
        _make(path, (temp, *made))
        exchange(*made)
    except OSError as error:
        raise _not_replaced(path, error) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _make(path: str, folders: Iterable[str]) -> None:
    """Make folders for the output ``path``; raises OutputError."""
    try:
        for one in folders:
            os.mkdir(one)
    except OSError as error:
        raise output_error(path, error) from error


def place_folder(temp: str, path: str, stale: set[str]) -> None:
    """Rename the temp folder ``temp`` to ``path``.

    If ``path`` exists, its files that ``temp`` lacks are first hard-linked into ``temp``, except the files ``stale``.
    Then the two folders are swapped: ``temp`` is now the path of the old folder.
    """
    parent = os.path.dirname(os.path.abspath(path))
    try:
        os.rename(temp, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _keep_others(path, temp, stale)
        os.chmod(temp, stat.S_IMODE(os.stat(path).st_mode))
        sync_folder(temp)
        _exchange(temp, path)
        _keep_others(temp, path, stale)  # files written there since the first pass
    sync_folder(parent)


def names_inside(folder: str, names: Iterable[str]) -> set[str]:
    """Return those of ``names``, which are paths, that are inside the subfolder ``folder``; without its name.

    For the folder "a", the path "a/b" becomes "b".
    """
    return {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}


def _keep_others(old: str, new: str, stale: set[str]) -> None:
    """Hard-link the files in the folder ``old`` into ``new``, except files in ``stale`` and files that ``new`` has."""
    for entry in os.scandir(old):
        target = os.path.join(new, entry.name)
        if entry.name in stale:
            continue
        if entry.is_dir(follow_symlinks=False):
            if not os.path.lexists(target):
                os.mkdir(target)
                shutil.copystat(entry.path, target, follow_symlinks=False)
            if os.path.isdir(target):
                _keep_others(entry.path, target, names_inside(entry.name, stale))
        elif not os.path.lexists(target):
            _link(entry.path, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(temp: str, path: str) -> None:
    """Swap two folders atomically."""
    try:
        exchange(temp, path)
    except OSError as error:
        raise _not_replaced(path, error) from error


def _not_replaced(path: str, error: OSError) -> OutputError:
    return OutputError(
        f"cannot replace the folder {escape(path)} atomically on this file system ({error.strerror}).",
        hint="Write to a new folder.",
    )
