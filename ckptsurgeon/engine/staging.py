"""Files that are there whole or not at all, and what stood there before until then.

Written to a hidden temp file in the same folder, locked by its maker; flushed to disk; put in place by one rename.
What a killed run left behind is unlocked, and is removed by the next.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import OutputError
from ..sources import File
from ..text import escape
from .libc import reserve
from .places import check_output, check_space, identities, output_error
from .temp import lock, remove_leftovers, sync, sync_folder, temp_name

__all__ = ["StagedFile", "staged_file", "temp_file", "write_text"]


class StagedFile:
    """A temp file, open for writing in any order and from any thread."""

    def __init__(self, path: str, shown: str = "") -> None:
        self.path = path
        self.shown = shown or path
        self.fd = -1

    def open(self, mode: int) -> None:
        """Create the file and lock it; raises OSError."""
        while True:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                lock(self.fd)
            except BlockingIOError:  # another run took it for a left-over and is about to remove it
                os.close(self.fd)
                self.path += "x"
                continue
            except OSError:
                self.close()
                with suppress(OSError):
                    os.unlink(self.path)
                raise
            if os.fstat(self.fd).st_nlink:
                return
            os.close(self.fd)

    def reserve(self, size: int) -> None:
        """Reserve the space of the whole file; raises OutputError where there is not enough."""
        try:
            reserve(self.fd, size)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``; raises OutputError."""
        view = memoryview(data).cast("B")
        try:
            while view:
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise output_error(self.shown, error) from error

    def flush(self, size: int | None) -> None:
        """Check the length, where it was known before, and wait until the bytes are on disk; raises OutputError."""
        try:
            found = os.fstat(self.fd).st_size
            if size is not None and found != size:
                raise OutputError(f"{escape(self.shown)} has {found} bytes where {size} were written.")
            sync(self.fd)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def staged_file(path: str, size: int | None, *, force: bool) -> Iterator[StagedFile]:
    """Give a temp file to write; when the block ends well it is flushed and takes the place of ``path``.

    ``size`` is None where it shows only as the bytes come; otherwise its space is reserved.
    Raises OutputError. Whatever else happens, the temp file is removed and ``path`` is as it was.
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
    """Give a temp file beside ``path``, for others to put in place; whatever happens, its own name is removed.

    Raises OutputError.
    """
    remove_leftovers(path)
    check_space(os.path.dirname(os.path.abspath(path)), size or 0, path)
    staged = StagedFile(temp_name(path), path)
    try:
        try:
            staged.open(0o666)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            if size is not None:
                staged.reserve(size)
            yield staged
        finally:
            with suppress(OSError):
                os.unlink(staged.path)
    finally:
        staged.close()


def _place(temp: str, path: str, *, force: bool) -> None:
    """Rename, or without ``force`` link, which fails where a file has appeared in the meantime."""
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


def write_text(path: str, text: str, *, inputs: Iterable[File], force: bool) -> None:
    """Write a small text file by the same rules; raises OutputError."""
    data = text.encode("utf-8", "surrogatepass")
    check_output(path, identities(inputs), force=force, folder=False)
    with staged_file(path, len(data), force=force) as staged:
        staged.write(0, data)
