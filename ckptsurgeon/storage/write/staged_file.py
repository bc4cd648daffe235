"""Writes files completely or not at all; until a new file is complete, the old one stays.

The file is written as a hidden temp file in the same folder, locked, flushed to disk, and put in place by one rename.
The temp file of a killed run is unlocked, and the next run removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import lru_cache, partial

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import Descriptor, lock, sync, sync_folder
from ..read.base import File
from .output_paths import (
    check_output,
    check_space,
    folder_of,
    identities,
    output_error,
    output_lock,
    remove_leftovers,
    temp_name,
)

__all__ = ["StagedFile", "libc", "staged_file", "temp_file", "write_text"]

FLAGS = os.O_RDWR | os.O_CLOEXEC

_NO_KERNEL_COPY = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
    errno.EIO,
}
"""Errors of a copy by the kernel after which the caller must read and write the bytes itself.

The kernel cannot copy between these files, or the error does not tell which of the two files failed.
"""


class StagedFile:
    """A temp file, open for writing in any order and from any thread."""

    def __init__(self, path: str, shown: str = "") -> None:
        self.path = path
        self.shown = shown or path
        self._file: Descriptor | None = None
        self._locked = False

    def create(self, mode: int) -> None:
        """Create the file without a lock, because the folder that contains it is locked; raises OSError."""
        self._file = Descriptor(partial(os.open, self.path, FLAGS | os.O_CREAT | os.O_EXCL, mode))
        self._file.again = partial(os.open, self.path, FLAGS)

    def open_again(self) -> None:
        """Open a file that an earlier run has written; raises OSError, also for a link."""
        self._file = Descriptor(partial(os.open, self.path, FLAGS | os.O_NOFOLLOW))
        self._file.again = partial(os.open, self.path, FLAGS | os.O_NOFOLLOW)

    def create_locked(self, mode: int) -> None:
        """Create the file and lock it; it stays open, since closing it would unlock it. Raises OSError."""
        while True:
            self.create(mode)
            fd, self._locked = self._open.take(), True
            try:
                lock(fd)
            except BlockingIOError:  # another run considers it a left-over and is about to remove it
                self.close()
                self.path += "x"
                continue
            except OSError:
                self.close()
                with suppress(OSError):
                    os.unlink(self.path)
                raise
            if os.fstat(fd).st_nlink:
                return
            self.close()

    @property
    def _open(self) -> Descriptor:
        if self._file is None:
            raise OSError(errno.EBADF, "the file is closed")
        return self._file

    def descriptor(self) -> AbstractContextManager[int]:
        """Return a context manager that yields the descriptor; raises OSError."""
        return self._open.used()

    def start_writing(self, offset: int, nbytes: int) -> None:
        """Ask the kernel to begin writing a range to disk."""
        with self.descriptor() as fd:
            start_writing(fd, offset, nbytes)

    def clear(self) -> None:
        """Make the file empty; raises OSError."""
        with self.descriptor() as fd:
            os.ftruncate(fd, 0)

    def reserve(self, size: int) -> None:
        """Reserve disk space for the whole file; raises OutputError if there is not enough."""
        try:
            with self.descriptor() as fd:
                reserve(fd, size)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``; raises OutputError."""
        view = memoryview(data).cast("B")
        try:
            fd = self._open.take()
            try:
                while view:
                    done = os.pwrite(fd, view, offset)
                    view, offset = view[done:], offset + done
            finally:
                self._open.give_back()
        except OSError as error:
            raise output_error(self.shown, error) from error

    def copy_in_kernel(self, source: File, source_offset: int, offset: int, nbytes: int) -> int:
        """Let the kernel copy bytes of ``source`` into this file, and return how many it has copied.

        The kernel shares the blocks of both files if the file system can (``copy_file_range(2)``). If the result is
        less than ``nbytes``, the kernel cannot copy the rest, or ``source`` became shorter: then the caller must read
        and write the rest, which raises the right error. Raises OutputError if this file cannot be written.
        """
        done = 0
        with source.descriptor() as fd, self.descriptor() as out:
            while fd is not None and done < nbytes and hasattr(os, "copy_file_range"):
                try:
                    moved = os.copy_file_range(fd, out, nbytes - done, source_offset + done, offset + done)
                except OSError as error:
                    if error.errno not in _NO_KERNEL_COPY:
                        raise output_error(self.shown, error) from error
                    break
                if not moved:
                    break
                done += moved
        return done

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return ``nbytes`` bytes of the file from ``offset`` on, which were written before; raises OutputError."""
        try:
            with self.descriptor() as fd:
                return os.pread(fd, nbytes, offset)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def flush(self, size: int | None) -> None:
        """Wait until the bytes are on disk; raises OutputError if the file's size is not ``size`` (None: any size)."""
        try:
            with self.descriptor() as fd:
                found = os.fstat(fd).st_size
                if size is not None and found != size:
                    raise OutputError(f"{escape(self.shown)} has {found} bytes, although {size} were written.")
                sync(fd)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def close(self) -> None:
        """Close the file, which unlocks it."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            if self._locked:
                file.give_back()
        self._locked = False


@contextmanager
def staged_file(path: str, size: int | None, *, force: bool) -> Iterator[StagedFile]:
    """Yield a temp file to write; if the block succeeds, the file is flushed and renamed to ``path``.

    ``size`` is None if it is not known in advance; otherwise the disk space is reserved. Raises OutputError. If the
    block fails, the temp file is removed and ``path`` is unchanged.
    """
    with temp_file(path, size) as staged:
        yield staged
        staged.flush(size)
        try:
            _place(staged.path, path, force=force)
            sync_folder(os.path.dirname(os.path.abspath(path)))
        except OSError as error:
            raise output_error(path, error) from error


@contextmanager
def temp_file(path: str, size: int | None) -> Iterator[StagedFile]:
    """Yield a temp file next to ``path``, which the caller renames or links to ``path``.

    If the temp file still exists when the block ends, it is removed. Raises OutputError.
    """
    remove_leftovers(path, folders=False)
    check_space(os.path.dirname(os.path.abspath(path)), size or 0, path)
    staged = StagedFile(temp_name(path), path)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_of(path))
            stack.callback(staged.close)
            staged.create_locked(0o666)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            if size is not None:
                staged.reserve(size)
            yield staged
        finally:
            with suppress(OSError):
                os.unlink(os.path.basename(staged.path), dir_fd=folder)


def _place(temp: str, path: str, *, force: bool) -> None:
    """Rename the temp file to ``path``; without ``force``, raises OSError if ``path`` exists by now.

    Without ``force``, ``path`` is made as a hard link, which fails if ``path`` exists. On a file system without hard
    links, it is renamed after a check.
    """
    if force:
        os.replace(temp, path)
        return
    try:
        os.link(temp, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(temp, path)
    else:
        os.unlink(temp)


def write_text(path: str, text: str, *, inputs: Iterable[File], force: bool, wait: float | None = None) -> None:
    """Write a small text file completely or not at all, while this run holds the lock on ``path``.

    ``inputs`` are files that must not be overwritten. Raises OutputError.
    """
    data = text.encode("utf-8", "surrogatepass")
    check_output(path, identities(inputs), force=force, folder=False)
    with output_lock(path, wait), staged_file(path, len(data), force=force) as staged:
        staged.write(0, data)


# Functions of the C library that Python does not have: fallocate(2), sync_file_range(2).

_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2
_TRIES = 100
"""How often a call is retried after a signal interrupts it; Python handles the signals in between."""


@lru_cache(maxsize=1)
def libc() -> ctypes.CDLL:
    """Return the C library, whose functions set errno."""
    return ctypes.CDLL(None, use_errno=True)


def reserve(fd: int, size: int) -> None:
    """Reserve disk space for a file, so that a full disk is found before anything is written; raises OSError.

    Nothing happens on file systems that cannot do this: glibc's ``posix_fallocate`` would write zeros there.
    """
    call = getattr(libc(), "fallocate64", None)
    if call is None or size == 0:
        return
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    for _ in range(_TRIES):
        if not call(fd, _FALLOC_FL_KEEP_SIZE, 0, size):
            return
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def start_writing(fd: int, offset: int, nbytes: int) -> None:
    """Ask the kernel to begin writing a range to disk. This is only a hint: ``fsync`` is the call that waits."""
    call = getattr(libc(), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)
