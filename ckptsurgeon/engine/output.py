"""Outputs that are there whole or not at all, and what stood there before until then.

Written to a hidden temp file in the same folder, locked by its maker; flushed to disk; put in place by one rename.
What a killed run left behind is unlocked, and is removed by the next.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import OutputError
from ..sources import File
from ..text import escape, human_bytes

__all__ = [
    "StagedFile",
    "StagedFolder",
    "check_output",
    "explained",
    "identities",
    "staged_file",
    "staged_folder",
    "write_text",
]

_MARK = ".ckpt-tmp"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

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


def explained(path: str, error: OSError) -> OutputError:
    """Return the error that says why a path cannot be written."""
    why = _WHY.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {escape(path)}: {why}.")


def check_output(path: str, inputs: Iterable[tuple[int, int]], *, force: bool, folder: bool) -> None:
    """Raise OutputError when a path must not be written: an input, something there already, or no place for it.

    ``inputs`` are the (device, inode) of every file that is read.
    """
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise OutputError(f"cannot write {escape(path)}: the folder {escape(parent)} does not exist.")
    try:
        found = os.stat(path)
    except OSError:
        if os.path.islink(path) and not force:
            raise OutputError(f"{escape(path)} exists (a broken link).", hint="Use --force to replace it.") from None
        return
    taken = set(inputs)
    if stat.S_ISDIR(found.st_mode) != folder:
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a file"
        raise OutputError(f"{escape(path)} is {kind}.", hint="Name another output.")
    if not folder and not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{escape(path)} is no regular file.")
    places = [path] if not folder else [entry.path for entry in os.scandir(path)]
    for place in places:
        with suppress(OSError):
            info = os.stat(place)
            if (info.st_dev, info.st_ino) in taken:
                raise OutputError(f"{escape(place)} is an input; it is never written.", hint="Name another output.")
    if not folder and not force:
        raise OutputError(f"{escape(path)} exists.", hint="Use --force to replace it.")


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
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another run took it for a left-over and is about to remove it
                os.close(self.fd)
                self.path += "x"
                continue
            if os.fstat(self.fd).st_nlink:
                return
            os.close(self.fd)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``; raises OutputError."""
        view = memoryview(data).cast("B")
        try:
            while view:
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise explained(self.shown, error) from error

    def flush(self, size: int) -> None:
        """Check the length and wait until the bytes are on disk; raises OutputError."""
        try:
            found = os.fstat(self.fd).st_size
            if found != size:
                raise OutputError(f"{escape(self.shown)} has {found} bytes where {size} were written.")
            _sync(self.fd)
        except OSError as error:
            raise explained(self.shown, error) from error

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL):
            raise


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _temp_name(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f"{_stem(name)}{secrets.token_hex(4)}{_MARK}")


def _stem(name: str) -> str:
    short = name if len(name.encode()) < 200 else hashlib.sha256(name.encode()).hexdigest()
    return f".{short}."


def _remove_leftovers(path: str) -> None:
    """Remove what killed runs left for this output: temp files and folders that nobody holds locked."""
    folder, name = os.path.split(os.path.abspath(path))
    stem = _stem(name)
    with suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            if entry.startswith(stem) and _MARK in entry:
                _remove_if_unlocked(os.path.join(folder, entry))


def _remove_if_unlocked(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        finally:
            os.close(fd)


def check_space(folder: str, size: int, shown: str) -> None:
    """Raise OutputError at once when a file system plainly has no room; it may still fill up later."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < size:
        raise OutputError(
            f"cannot write {escape(shown)}: it needs {human_bytes(size)} and {human_bytes(free)} are free."
        )


@contextmanager
def staged_file(path: str, size: int, *, force: bool) -> Iterator[StagedFile]:
    """Give a temp file to write; when the block ends well it is flushed and takes the place of ``path``.

    Raises OutputError. Whatever else happens, the temp file is removed and ``path`` is as it was.
    """
    _remove_leftovers(path)
    check_space(os.path.dirname(os.path.abspath(path)), size, path)
    staged = StagedFile(_temp_name(path), path)
    try:
        try:
            staged.open(0o666)
        except OSError as error:
            raise explained(path, error) from error
        try:
            yield staged
            staged.flush(size)
            try:
                _place(staged.path, path, force=force)
                _sync_folder(os.path.dirname(os.path.abspath(path)))
            except OSError as error:
                raise explained(path, error) from error
        except BaseException:
            with suppress(OSError):
                os.unlink(staged.path)
            raise
    finally:
        staged.close()


def write_text(path: str, text: str, *, inputs: Iterable[File], force: bool) -> None:
    """Write a small text file by the same rules; raises OutputError."""
    data = text.encode("utf-8", "surrogatepass")
    check_output(path, identities(inputs), force=force, folder=False)
    with staged_file(path, len(data), force=force) as staged:
        staged.write(0, data)


def identities(files: Iterable[File]) -> Iterator[tuple[int, int]]:
    """Yield the (device, inode) of open files."""
    for file in files:
        fd = file.fileno()
        if fd is not None:
            found = os.fstat(fd)
            yield found.st_dev, found.st_ino


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


class StagedFolder:
    """A temp folder, and the files being written in it."""

    def __init__(self, path: str, shown: str) -> None:
        self.path = path
        self.shown = shown
        self._open: list[tuple[StagedFile, int]] = []

    def file(self, name: str, size: int) -> StagedFile:
        """Create a file of a known size."""
        staged = StagedFile(os.path.join(self.path, name), os.path.join(self.shown, name))
        try:
            staged.open(0o666)
        except OSError as error:
            raise explained(staged.shown, error) from error
        self._open.append((staged, size))
        return staged

    def text(self, name: str, content: str) -> None:
        """Write a small file."""
        data = content.encode("utf-8", "surrogatepass")
        self.file(name, len(data)).write(0, data)

    def flush(self) -> None:
        """Wait until everything is on disk."""
        for staged, size in self._open:
            staged.flush(size)
        self.close()
        _sync_folder(self.path)

    def close(self) -> None:
        """Close all files."""
        for staged, _ in self._open:
            staged.close()


@contextmanager
def staged_folder(path: str, size: int, *, stale: Iterable[str] = ()) -> Iterator[StagedFolder]:
    """Give a temp folder to write; when the block ends well it takes the place of ``path`` in one step.

    What else is in ``path`` stays, but for the files named ``stale``. Raises OutputError.
    """
    _remove_leftovers(path)
    check_space(os.path.dirname(os.path.abspath(path)), size, path)
    staged = StagedFolder(_temp_name(path), path)
    try:
        os.mkdir(staged.path, 0o777)
        lock = os.open(staged.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise explained(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staged
        staged.flush()
        _place_folder(staged.path, path, set(stale))
    except OSError as error:
        raise explained(path, error) from error
    finally:
        staged.close()
        shutil.rmtree(staged.path, ignore_errors=True)
        os.close(lock)


def _place_folder(temp: str, path: str, stale: set[str]) -> None:
    """Rename a folder into place; one that is there is swapped for it, with its other files linked over first."""
    parent = os.path.dirname(os.path.abspath(path))
    try:
        os.rename(temp, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _keep_others(path, temp, stale)
        _sync_folder(temp)
        _exchange(temp, path)
    _sync_folder(parent)


def _keep_others(old: str, new: str, stale: set[str]) -> None:
    """Hard-link into ``new`` what ``old`` holds besides its checkpoint."""
    for entry in os.scandir(old):
        target = os.path.join(new, entry.name)
        if entry.name in stale or os.path.lexists(target):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, target, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(temp: str, path: str) -> None:
    """Swap two folders in one step (renameat2(2), Linux 3.15)."""
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is None or swap(_AT_FDCWD, os.fsencode(temp), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OutputError(
            f"cannot replace the folder {escape(path)} in one step here ({os.strerror(code)}).",
            hint="Write to a new folder.",
        )
