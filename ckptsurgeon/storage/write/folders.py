"""Writes folders completely or not at all: into a temp folder, which then atomically replaces the old folder."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import lock, sync_folder
from .folder_exchange import check_exchange, names_inside, place_folder
from .journal import JOURNAL, ONLY_COPY, Journal, UnfinishedOutput, only_copies, unfinished_output
from .output_paths import check_space, folder_of, output_error, remove_leftovers, temp_name
from .staged_file import StagedFile

__all__ = ["FileStream", "StagedFolder", "locked_folder", "staged_folder", "unfinished_error"]


class FileStream:
    """A file that is written from its beginning to its end, as by ``torch.save``; ``size`` counts the bytes written."""

    def __init__(self, file: StagedFile) -> None:
        self.file, self.size = file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes and return their number; raises OutputError."""
        nbytes = memoryview(data).nbytes
        self.file.write(self.size, data)
        self.size += nbytes
        return nbytes

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""


class StagedFolder:
    """A temp folder, and the files that are written into it.

    If ``kept_on_failure`` is true, the folder is not removed after a failure, so that a later run can continue. If
    ``is_only_copy`` is true, sources were deleted, and their values are only in this folder: no failure removes it. If
    ``reserves`` is true, disk space is reserved for each file. It must be false if the disk may not have room for all
    files at once.
    """

    reserves = True

    def __init__(self, path: str, shown: str) -> None:
        self.path = path
        self.shown = shown
        self.kept_on_failure = False
        self.is_only_copy = False
        self._open: list[tuple[StagedFile, int]] = []
        self._of_others: dict[str, tuple[int, int]] = {}
        """{path of a file that another process has written: its device and inode}."""

    def file(self, name: str, size: int) -> StagedFile:
        """Create a file in the temp folder, and reserve ``size`` bytes for it on disk; raises OutputError."""
        staged = StagedFile(os.path.join(self.path, name), os.path.join(self.shown, name))
        try:
            os.makedirs(os.path.dirname(staged.path), exist_ok=True)  # a name may have a subfolder in front
            staged.create(0o666)
        except OSError as error:
            raise output_error(staged.shown, error) from error
        self._open.append((staged, size))
        if self.reserves:
            staged.reserve(size)
        return staged

    def finished(self, name: str) -> None:
        """Do nothing; callers call this method when a file is complete, so that a subclass can upload it."""

    def open_existing(self, name: str, size: int) -> StagedFile | None:
        """Open a file that another process has written.

        Returns None if there is no file of ``size`` bytes with this name.
        """
        staged = StagedFile(os.path.join(self.path, name), os.path.join(self.shown, name))
        with suppress(OSError):
            staged.open_again()
            with staged.descriptor() as fd:
                found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size == size:
                self._open.append((staged, size))
                self._of_others[staged.path] = found.st_dev, found.st_ino
                return staged
        staged.close()
        return None

    def mark_only_copy(self) -> None:
        """Mark the folder as the only copy of values, since sources will be deleted: then no failure removes it.

        Raises OutputError.
        """
        self.is_only_copy = True
        try:
            fd = os.open(os.path.join(self.path, ONLY_COPY), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.close(fd)
            sync_folder(self.path)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def clear(self, *, but: Collection[str]) -> None:
        """Remove all files of an earlier run from the folder, except the journal and the files ``but``.

        Raises OutputError.
        """
        try:
            _clear(self.path, {JOURNAL, ONLY_COPY, *but})
        except OSError as error:
            raise output_error(self.shown, error) from error

    def remove(self, name: str) -> None:
        """Close a file, if it is open, and remove it from the temp folder, if it is there; raises OutputError."""
        path = os.path.join(self.path, name)
        for staged, _ in self._open:
            if staged.path == path:
                staged.close()
        self._open = [entry for entry in self._open if entry[0].path != path]
        self._of_others.pop(path, None)
        try:
            if os.path.lexists(path):
                os.unlink(path)
        except OSError as error:
            raise output_error(self.shown, error) from error

    def write(self, name: str, data: bytes) -> None:
        """Write a small file in the temp folder."""
        self.file(name, len(data)).write(0, data)

    @contextmanager
    def stream(self, name: str) -> Iterator[FileStream]:
        """Yield a file of unknown size, which the block writes from its beginning to its end."""
        stream = FileStream(self.file(name, 0))
        yield stream
        self._open[-1] = (stream.file, stream.size)

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes."""
        return sum(size for _, size in self._open)

    def flush(self) -> None:
        """Wait until all files are on disk, and close them; raises OutputError if a file was replaced meanwhile.

        A process of an earlier run may still write its files, for example if its machine was wrongly taken for dead.
        """
        for staged, size in self._open:
            staged.flush(size)
            if (of_other := self._of_others.get(staged.path)) and _identity(staged.path) != of_other:
                raise OutputError(
                    f"{escape(staged.shown)} was replaced after it was written: another process writes it, too.",
                    hint="Stop the processes of an earlier run, and run the command again.",
                )
        self.close()
        for folder in {os.path.dirname(staged.path) for staged, _ in self._open} - {self.path}:
            sync_folder(folder)
        sync_folder(self.path)

    def close(self) -> None:
        """Close all files."""
        for staged, _ in self._open:
            staged.close()


def _identity(path: str) -> tuple[int, int] | None:
    """Return (device, inode) of a file; None if it does not exist: another process may have just removed it."""
    with suppress(OSError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None


def _clear(path: str, but: Collection[str]) -> None:
    """Remove all files and subfolders of a folder, except the files ``but``, which may be paths in subfolders."""
    for entry in os.scandir(path):
        if not entry.is_dir(follow_symlinks=False):
            if entry.name not in but:
                os.unlink(entry.path)
        elif inside := names_inside(entry.name, but):
            _clear(entry.path, inside)
        else:
            shutil.rmtree(entry.path)


@contextmanager
def staged_folder(
    path: str,
    size: int,
    *,
    stale: Iterable[str] = (),
    unfinished: UnfinishedOutput | None = None,
    restart: bool = False,
) -> Iterator[StagedFolder]:
    """Yield a temp folder to write into; if the block succeeds, the temp folder atomically replaces ``path``.

    Files of ``path`` that the temp folder lacks are kept, except the files ``stale``. ``size`` is the number of bytes
    that will be written. ``unfinished`` is the unfinished output of an earlier run that this run continues. With
    ``restart``, unfinished outputs are removed. Raises OutputError if the folder cannot be written, or if there is an
    unfinished output and neither ``unfinished`` nor ``restart`` is given.
    """
    if unfinished is None:
        _check_no_unfinished(path, restart=restart)
    begun = unfinished.folder if unfinished is not None else ""
    _check_removable(path, but=begun)
    remove_leftovers(path, but=begun)  # before check_exchange, which makes a temp folder
    if os.path.isdir(path):
        check_exchange(path)
    _check_not_within(path)
    check_space(os.path.dirname(os.path.abspath(path)), size, path)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_of(path))
            temp, held = locked_folder(path) if unfinished is None else _taken_over(unfinished.folder, path)
        except OSError as error:
            raise output_error(path, error) from error
        staged = StagedFolder(temp, path)
        staged.kept_on_failure = unfinished is not None
        try:
            yield staged
            _flush(staged)
            staged.kept_on_failure = False
            if staged.is_only_copy:  # until the folder is in place, the next run must find it
                place_folder(staged.path, path, set(stale))
                staged.is_only_copy = False
                os.unlink(os.path.join(path, ONLY_COPY))
                Journal(path, path).remove()
            else:
                Journal(staged.path, path).remove()
                place_folder(staged.path, path, set(stale))
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            staged.close()
            if not staged.kept_on_failure and not staged.is_only_copy:
                shutil.rmtree(os.path.basename(staged.path), ignore_errors=True, dir_fd=folder)
            os.close(held)


def _check_no_unfinished(path: str, *, restart: bool) -> None:
    """Raise OutputError if an interrupted run has left finished files (parts) of the output ``path``.

    With ``restart``, the error is raised only if the interrupted run had --consume, and so may have deleted sources.
    """
    found = unfinished_output(path)
    consumes = found is not None and found.head.get("consume") is True
    if found is not None and (consumes or not restart):
        raise unfinished_error(
            found,
            path,
            f": they belong to another command, ckpt {escape(str(found.head.get('verb')))}",
            "Finish that command: it has --consume, and these parts may be the only copy of their values."
            if consumes
            else "Use --restart to remove these parts and begin anew, or finish that command first.",
        )


def unfinished_error(found: UnfinishedOutput, shown: str, why: str, hint: str) -> OutputError:
    """Return the error on an unfinished output that this run cannot continue.

    ``shown`` is the path of the output in the message, and ``why`` the end of the message.
    """
    place = os.path.join(os.path.dirname(shown.rstrip("/")), os.path.basename(found.folder))
    return OutputError(
        f"an interrupted run has left {found.done} parts of {escape(shown)} in {escape(place)}{why}.", hint=hint
    )


def _check_removable(path: str, *, but: str) -> None:
    """Raise OutputError if an interrupted run of this output left a folder with the only copy of values.

    The folder ``but`` is ignored, because this run continues it.
    """
    for folder in only_copies(path):
        if folder != but:
            raise OutputError(
                f"{escape(folder)} has the only copy of some weights: an interrupted run with --consume, which "
                f"writes {escape(path)}, has already deleted its sources. This command cannot continue that run, "
                "because the journal in the folder is damaged, or belongs to another user or another run.",
                hint="Let the user who began that run finish it, or move the folder away: its shards are complete.",
            )


def _flush(staged: StagedFolder) -> None:
    """Wait until all files of ``staged`` are on disk.

    If this fails, the folder is not kept for a later run, because the system may have dropped bytes that it could not
    write to disk.
    """
    try:
        staged.flush()
    except (OSError, OutputError):
        staged.kept_on_failure = False
        raise


def _check_not_within(path: str) -> None:
    """Raise OutputError if the working directory is inside a folder that is to be replaced: it would be deleted."""
    with suppress(OSError):
        here = os.path.realpath(os.getcwd())
        if os.path.commonpath([here, os.path.realpath(path)]) == os.path.realpath(path):
            raise OutputError(
                f"the working directory is inside {escape(path)}, which is replaced as a whole.",
                hint="Run the command from outside that folder, or choose a new output folder.",
            )


def locked_folder(path: str, mode: int = 0o777) -> tuple[str, int]:
    """Create a temp folder for the output ``path`` and lock it; return its path and its open descriptor.

    Another run may remove the folder before it is locked, because it takes it for one of a killed run; then a new
    folder is created. Raises OSError.
    """
    while True:
        temp = temp_name(path)
        os.mkdir(temp, mode)
        fd = -1
        try:
            fd = os.open(temp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock(fd)
            if os.fstat(fd).st_nlink:
                return temp, fd
            os.close(fd)
        except OSError as error:
            _close(fd)
            if not isinstance(error, (FileNotFoundError, BlockingIOError)):
                shutil.rmtree(temp, ignore_errors=True)
                raise


def _taken_over(begun: str, path: str) -> tuple[str, int]:
    """Rename ``begun``, the temp folder of an earlier run, and lock it; return the new path and the open descriptor.

    On a file system without locks, the earlier run may still be writing. Then that run fails, since it no longer finds
    its folder.
    """
    temp = temp_name(path)
    fd = os.open(begun, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lock(fd)
        os.rename(begun, temp)
    except OSError:
        os.close(fd)
        raise
    return temp, fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
