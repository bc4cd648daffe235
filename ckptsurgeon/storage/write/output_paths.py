"""Checks whether an output may be written to a path, locks the path, and names and removes its temp files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...errors import ConfigError, OutputError
from ...util.text import escape, human_bytes
from ..descriptors import lock
from ..read.base import File
from ..read.uri import scheme_of

__all__ = [
    "check_is_path",
    "check_is_possible",
    "check_output",
    "check_parent",
    "check_space",
    "check_wait",
    "folder_of",
    "identities",
    "leftovers",
    "output_error",
    "output_lock",
    "remove_all_leftovers",
    "remove_leftovers",
    "stem",
    "temp_name",
]

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


def check_is_possible(path: str) -> None:
    """Raise OutputError if a path has the character NUL, which no name of a file can have."""
    if "\0" in path:
        raise OutputError(f"cannot write {escape(path)}: the path has the character NUL.", hint="Name another output.")


def check_is_path(path: str) -> None:
    """Raise OutputError if ``path`` is an address; this is for outputs that can only be written to this machine.

    Raises the error of ``check_is_possible``, too.
    """
    check_is_possible(path)
    if scheme_of(path):
        raise OutputError(
            f"cannot write {escape(path)}: this output cannot be written to an address.",
            hint="Use a path on this machine.",
        )


def check_parent(path: str) -> None:
    """Raise OutputError if the folder of ``path`` does not exist, or if it is not a folder."""
    parent = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(parent):
        return
    place = parent
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise OutputError(f"cannot write {escape(path)}: {escape(place)} is not a folder.", hint="Name another output.")
    raise OutputError(
        f"cannot write {escape(path)}: the folder {escape(parent)} does not exist.", hint="Make that folder first."
    )


def check_output(
    path: str, inputs: Iterable[tuple[int, int]], *, force: bool, folder: bool, inside: Iterable[str] = ()
) -> None:
    """Raise OutputError if a path must not be written: it is an input or an address, or its folder does not exist.

    The same holds if the path is a folder in place of a file, or the reverse, and without ``force`` if it is any file.
    ``inputs`` has (device, inode) of each file that is read, and ``inside`` the subfolders that are written into.
    """
    check_is_path(path)
    check_parent(path)
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


ROOM = "Make room on this disk, or write to another one."


def check_space(folder: str, size: int, shown: str, hint: str = ROOM) -> None:
    """Raise OutputError if a file system clearly has too little space; it may still become full during the run."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < size:
        raise OutputError(
            f"cannot write {escape(shown)}: it needs {human_bytes(size)}, but only {human_bytes(free)} are free.",
            hint=hint,
        )


def identities(files: Iterable[File]) -> Iterator[tuple[int, int]]:
    """Yield the (device, inode) of each open file; files without a descriptor are left out."""
    for file in files:
        with file.descriptor() as fd:
            found = None if fd is None else os.fstat(fd)
        if found is not None:
            yield found.st_dev, found.st_ino


# The lock: one process at a time writes an output, whatever its format.
#
# The lock is on a small file next to the output, ``.NAME.ckpt-lock``. The system releases the lock even if the process
# is killed. So the lock file of a killed run blocks no other run, and the next run removes it. The file is not inside
# an output folder, because an output folder is replaced as a whole.

SUFFIX = "ckpt-lock"
PAUSE_S = 0.1
"""Seconds between two attempts to get the lock. A system call that waits for the lock could not be interrupted."""


def check_wait(seconds: float | None) -> None:
    """Raise ConfigError if ``seconds``, the value of --wait, is negative or NaN."""
    if seconds is not None and not seconds >= 0:
        raise ConfigError(f"--wait {seconds} is not a valid time.", hint="Give seconds, for example --wait 60.")


@contextmanager
def output_lock(path: str, wait: float | None = None, *, shown: str = "", hint: str = "") -> Iterator[None]:
    """Hold the lock on ``path``; raises OutputError if another run still holds it after ``wait`` seconds.

    ``shown`` is the output's name in messages, by default ``path``. ``hint`` is the hint of this error, by default one
    on the option --wait. Raises ConfigError if ``wait`` is not a valid time. On network file systems without locks,
    nothing is locked.
    """
    check_wait(wait)
    name = stem(os.path.basename(os.path.abspath(path))) + SUFFIX
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_of(path))
        except OSError as error:
            raise output_error(path, error) from error
        longer = "Use a longer --wait" if wait else "Use --wait SECONDS"
        hint = hint or f"{longer}, or choose another output."
        held = _waited_for(folder, name, shown or path, time.monotonic() + (wait or 0.0), hint)
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            os.close(held)


def _waited_for(folder: int, name: str, path: str, until: float, hint: str) -> int:
    while True:
        try:
            held = _try_lock(folder, name)
        except OSError as error:
            raise output_error(path, error) from error
        if held is not None:
            return held
        left = until - time.monotonic()
        if left <= 0:
            raise OutputError(f"{escape(path)} is being written by {_holder(folder, name)}.", hint=hint)
        time.sleep(min(PAUSE_S, left))


def _try_lock(folder: int, name: str) -> int | None:
    """Open and lock the lock file ``name``; returns its descriptor, None if another run holds the lock.

    ``folder`` is a descriptor of its folder. If the file does not exist, it is made. Raises OSError.
    """
    while True:
        fd = _opened(folder, name)
        try:
            lock(fd)
            if _is_at(fd, folder, name):
                _write_holder(fd)
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            with suppress(OSError):
                if not os.fstat(fd).st_size:  # empty: it was made a moment ago
                    os.unlink(name, dir_fd=folder)
            os.close(fd)
            raise
        os.close(fd)  # its holder has just removed it


def _opened(folder: int, name: str) -> int:
    """Open the lock file, for writing if possible: NFS only locks files that are open for writing."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, os.O_RDWR | flags, 0o666, dir_fd=folder)
    except PermissionError:  # the file of another user
        return os.open(name, os.O_RDONLY | flags & ~os.O_CREAT, dir_fd=folder)


def _is_at(fd: int, folder: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_holder(fd: int) -> None:
    """Write a description of this process into the lock file; an error, such as a full disk, is ignored."""
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _holder(folder: int, name: str) -> str:
    """Return a phrase for the process that holds the lock, as in the lock file: ``process 123 on host``."""
    said: list[str] = []
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            said = os.pread(fd, 300, 0).decode("ascii", "replace").split()
        finally:
            os.close(fd)
    at = f" on {escape(said[1])}" if said[1:] and said[1] != socket.gethostname() else ""
    return f"process {escape(said[0])}{at}" if said else "another process"


# Temp files and folders, next to the output.

MARK = ".ckpt-tmp"


def temp_name(path: str) -> str:
    """Return a new hidden name next to ``path`` that contains the name of the output."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f"{stem(name)}{secrets.token_hex(4)}{MARK}")


def stem(name: str) -> str:
    """Return the prefix with which the names of all temp files for the output ``name`` begin."""
    raw = os.fsencode(name)
    short = name if len(raw) < 200 else hashlib.sha256(raw).hexdigest()
    return f".{short}."


@contextmanager
def folder_of(path: str) -> Iterator[int]:
    """Yield a descriptor of the folder that contains ``path``; it stays valid if the folder is renamed."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def leftovers(path: str) -> list[str]:
    """Return the paths of all temp files and folders of the output ``path``, also of a run that is still writing."""
    folder, name = os.path.split(os.path.abspath(path))
    return _leftovers(folder, re.escape(stem(name)))


def remove_leftovers(path: str, *, but: str = "", folders: bool = True) -> None:
    """Remove the temp files and folders of the output ``path`` that killed runs left, if they are not locked.

    ``but`` is the path of a temp folder that is not removed, because this run continues it. If ``folders`` is false,
    only files are removed.
    """
    for found in leftovers(path):
        if found != but and (folders or not os.path.isdir(found)):
            _remove_if_unlocked(found)


def remove_all_leftovers(folder: str) -> None:
    """Remove the unlocked temp files and folders that killed runs left in a folder, for any output."""
    for found in _leftovers(folder, r"\..+\."):
        _remove_if_unlocked(found)


def _leftovers(folder: str, stem: str) -> list[str]:
    ours = re.compile(stem + r"[0-9a-f]{8}" + re.escape(MARK) + r"x*", re.DOTALL)
    try:
        return [os.path.join(folder, entry) for entry in sorted(os.listdir(folder)) if ours.fullmatch(entry)]
    except OSError:
        return []


def _remove_if_unlocked(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        finally:
            os.close(fd)
