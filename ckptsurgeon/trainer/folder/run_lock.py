"""Lets only one process train in a run folder: the folder is locked until the process ends, even if it is killed."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field

from ...errors import OutputError
from ...storage.write.output_checks import output_error
from ...util.text import escape

__all__ = ["RunLock"]

LOCK_FILE = ".ckpt-lock"


@dataclass
class RunLock:
    """The lock of the run in ``folder``: a file in the folder, with a POSIX record lock.

    Worker processes that this process forks do not hold the lock
    (https://pubs.opengroup.org/onlinepubs/9699919799/functions/fcntl.html). So a killed run can be resumed immediately,
    even if its workers live for some more seconds.
    """

    folder: str
    _held: list[int] = field(default_factory=list)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    @property
    def path(self) -> str:
        """The path of the file that is locked; the file is removed when the lock is released."""
        return os.path.join(self.folder, LOCK_FILE)

    def check(self) -> None:
        """Raise OutputError if another process trains in the folder.

        If the folder has no lock file, nothing is done. If it has one, the folder is locked, as by ``take``.
        """
        if os.path.isfile(self.path):
            self.take()

    def take(self) -> None:
        """Lock the folder, which must exist; raises OutputError if another process trains in it."""
        while not self._held:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise output_error(self.path, error) from error
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stays = _is_at(handle, self.path)
            except BlockingIOError as error:
                raise self._taken(handle) from error
            except OSError as error:
                os.close(handle)
                raise output_error(self.path, error) from error
            if not stays:  # its former holder removed the file between open and lock
                os.close(handle)
                continue
            self._held.append(handle)
            self._sign(handle)

    def _sign(self, handle: int) -> None:
        """Write the id and host of this process into the lock file; if that fails, unlock it and raise OutputError."""
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            self.give_back()
            raise output_error(self.path, error) from error

    def _taken(self, handle: int) -> OutputError:
        said = os.pread(handle, 300, 0).decode("ascii", "replace").split()
        os.close(handle)
        number = said[0] if said else "with an unknown id"
        at = f" on {escape(said[1])}" if said[1:] and said[1] != socket.gethostname() else ""
        return OutputError(
            f"{escape(self.folder)} is being trained by process {escape(number)}{at}.",
            hint="Wait for that process, or train in another folder with --run.",
        )

    def give_back(self) -> None:
        """Release the lock, if it is held, and remove its file."""
        for handle in self._held:
            with suppress(OSError):
                os.unlink(self.path)
            os.close(handle)
        self._held.clear()


def _is_at(handle: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)
