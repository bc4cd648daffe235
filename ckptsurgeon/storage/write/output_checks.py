"""Checks whether an output may be written to a path."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ...errors import OutputError
from ...util.text import escape, human_bytes
from ..read.base import File
from ..read.uri import scheme_of

__all__ = ["check_is_path", "check_output", "check_space", "identities", "output_error"]

_WHY = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder is a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EEXIST: "it exists; --force replaces it",
}


def output_error(path: str, error: OSError) -> OutputError:
    """Return the error for a path that cannot be written, with the reason."""
    known = _WHY.get(error.errno or 0)
    if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(os.path.abspath(path))):
        known = None  # as in /proc, where no file can be made
    why = known or error.strerror or str(error)
    return OutputError(f"cannot write {escape(path)}: {why}.")


def check_is_path(path: str) -> None:
    """Raise OutputError if ``path`` is an address; this is for outputs that can only be written to this machine."""
    if scheme_of(path):
        raise OutputError(
            f"cannot write {escape(path)}: this output cannot be written to an address.",
            hint="Use a path on this machine.",
        )


def check_output(
    path: str, inputs: Iterable[tuple[int, int]], *, force: bool, folder: bool, inside: Iterable[str] = ()
) -> None:
    """Raise OutputError if a path must not be written: it is an input, exists already, or its folder does not exist.

    ``inputs`` has (device, inode) of each file that is read, and ``inside`` the subfolders that are written into.
    """
    check_is_path(path)
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise OutputError(
            f"cannot write {escape(path)}: the folder {escape(parent)} does not exist.", hint="Make that folder first."
        )
    try:
        found = os.stat(path)
    except OSError:
        if os.path.islink(path) and not force:
            raise _exists_error(path) from None
        return
    taken = set(inputs)
    if stat.S_ISDIR(found.st_mode) != folder:
        kind = "a folder, not a file" if stat.S_ISDIR(found.st_mode) else "a file, not a folder"
        raise OutputError(f"{escape(path)} is {kind}.", hint="Name another output.")
    if not folder and not stat.S_ISREG(found.st_mode):
        raise OutputError(f"cannot write {escape(path)}: it is not a regular file.")
    folders = [path, *(os.path.join(path, one) for one in inside if os.path.isdir(os.path.join(path, one)))]
    places = [entry.path for one in folders for entry in os.scandir(one)] if folder else [path]
    for place in places:
        with suppress(OSError):
            info = os.stat(place)
            if (info.st_dev, info.st_ino) in taken:
                raise OutputError(
                    f"{escape(place)} is an input, and inputs are never changed.", hint="Name another output."
                )
    if not folder and not force:
        raise _exists_error(path)


def _exists_error(path: str) -> OutputError:
    """Return the error for a path that exists; if it is a link, the hint says that only the link would be replaced."""
    if not os.path.islink(path):
        return OutputError(f"{escape(path)} exists.", hint="Use --force to replace it.")
    gone = "" if os.path.exists(path) else ", which does not exist"
    return OutputError(
        f"{escape(path)} exists: it is a link to {escape(os.readlink(path))}{gone}.",
        hint="Use --force to replace the link; what it points to stays.",
    )


def check_space(folder: str, size: int, shown: str) -> None:
    """Raise OutputError if a file system clearly has too little space; it may still become full during the run."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < size:
        raise OutputError(
            f"cannot write {escape(shown)}: it needs {human_bytes(size)}, but only {human_bytes(free)} are free.",
            hint="Make room on this disk, or write to another one.",
        )


def identities(files: Iterable[File]) -> Iterator[tuple[int, int]]:
    """Yield the (device, inode) of each open file; files without a descriptor are left out."""
    for file in files:
        with file.descriptor() as fd:
            found = None if fd is None else os.fstat(fd)
        if found is not None:
            yield found.st_dev, found.st_ino
