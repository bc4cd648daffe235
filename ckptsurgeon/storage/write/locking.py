"""Lets one process at a time write an output, whatever its format.

The lock is on a small file next to the output, ``.NAME.ckpt-lock``. The system releases the lock even if the process is
killed. So the lock file of a killed run blocks no other run, and the next run removes it. The file is not inside an
output folder, because an output folder is replaced as a whole.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...errors import ConfigError, OutputError
from ...util.text import escape
from .output_checks import output_error
from .temp_files import folder_of, lock, stem

__all__ = ["check_wait", "output_lock"]

SUFFIX = "ckpt-lock"
PAUSE_S = 0.1
"""Seconds between two attempts to get the lock. A system call that waits for the lock could not be interrupted."""


def check_wait(seconds: float | None) -> None:
    """Raise ConfigError if ``seconds``, the value of --wait, is negative or NaN."""
    if seconds is not None and not seconds >= 0:
        raise ConfigError(f"--wait {seconds} is not a valid time.", hint="Give seconds, for example --wait 60.")


@contextmanager
def output_lock(path: str, wait: float | None = None, *, shown: str = "") -> Iterator[None]:
    """Hold the lock on ``path``; raises OutputError if another run still holds it after ``wait`` seconds.

    ``shown`` is the output's name in messages, by default ``path``. Raises ConfigError if ``wait`` is not a valid time.
    On network file systems without locks, nothing is locked.
    """
    check_wait(wait)
    name = stem(os.path.basename(os.path.abspath(path))) + SUFFIX
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_of(path))
        except OSError as error:
            raise output_error(path, error) from error
        held = _waited_for(folder, name, shown or path, time.monotonic() + (wait or 0.0))
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            os.close(held)


def _waited_for(folder: int, name: str, path: str, until: float) -> int:
    while True:
        try:
            held = _try_lock(folder, name)
        except OSError as error:
            raise output_error(path, error) from error
        if held is not None:
            return held
        left = until - time.monotonic()
        if left <= 0:
            raise OutputError(
                f"{escape(path)} is being written by {_holder(folder, name)}.",
                hint="Use --wait SECONDS, or choose another output.",
            )
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
