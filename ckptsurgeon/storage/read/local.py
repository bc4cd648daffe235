"""Reads files on this machine with ``pread``, not ``mmap``, so that a file that shrinks is an error, not a SIGBUS."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NoReturn, TypeGuard

from ...errors import FormatError, SourceError
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from ..descriptors import Descriptor, IrregularError, open_regular, unwritten_ranges
from .base import Advance, File, Folder, Source
from .consumed_shard import CONSUMED, consumed_shard
from .uri import check_name
from .zero_pages import GRID, zero_page

__all__ = ["SOURCE", "ConsumedFile", "LocalFile", "LocalFolder", "is_local", "link_of", "take_zeros"]

INDEX = ".index"
"""The suffix of TensorFlow's index; the path of a TensorFlow checkpoint is the common prefix of its files."""
BLOCK = 1 << 20
"""The size of the blocks that are searched for pages of zeros; only the first page in each block is remembered."""
ZEROS = 1 << 14
"""The most pages of zeros whose offsets a LocalFile remembers."""


class LocalFile(File):
    """A regular file that is kept open, so that all reads are from the file for which a plan was made.

    If too many files are open, unused files are closed; they are reopened later, if they are unchanged. ``unwritten``
    are the (begin, end) ranges of bytes that were never written. ``zeros`` has the offsets of at most ``ZEROS`` pages
    of zeros that were found while reading: a caller can then check whether a part of the file is missing there.
    """

    remote = False
    validator = ""

    def __init__(self, path: str, uri: str = "") -> None:
        self.path = path
        self.uri = uri or path
        self.name = os.path.basename(path)
        place = os.path.abspath(path)
        self._descriptor = Descriptor(partial(_open_regular, path, self.uri))
        with self._descriptor.used() as fd:
            found = os.fstat(fd)
            self.unwritten = unwritten_ranges(fd, found.st_size)
        self.zeros: list[int] = []
        self._descriptor.again = partial(_open_again, place, self.uri, _identity(found))
        self.size = found.st_size
        self.mtime_ns: int | None = found.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises SourceError if the file ends before."""
        try:
            fd = self._descriptor.take()
            try:
                data = os.pread(fd, nbytes, offset)
            finally:
                self._descriptor.give_back()
        except OSError as error:
            raise self._failed(error) from error
        if len(data) == nbytes:
            self._look_at(offset, memoryview(data))
            return data
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError if the file ends before."""
        done = 0
        try:
            fd = self._descriptor.take()
            try:
                while done < len(view):
                    got = os.preadv(fd, [view[done:]], offset + done)
                    if got == 0:
                        raise SourceError(
                            f"{escape(self.uri)} ended at byte {offset + done} while it was read.",
                            hint="Run the command again when no other program writes this file.",
                        )
                    done += got
            finally:
                self._descriptor.give_back()
        except OSError as error:
            raise self._failed(error) from error
        self._look_at(offset, view)

    def _look_at(self, offset: int, view: memoryview) -> None:
        for begin in range(0, len(view) if len(view) >= GRID else 0, BLOCK):
            if (at := zero_page(view[begin : begin + BLOCK])) is not None and len(self.zeros) < ZEROS:
                self.zeros.append(offset + begin + at)

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: the bytes are on this machine."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: the file is on this machine."""

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._descriptor.closed

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """Yield the descriptor, which stays open during the block; raises SourceError."""
        try:
            fd = self._descriptor.take()
        except OSError as error:
            raise self._failed(error) from error
        try:
            yield fd
        finally:
            self._descriptor.give_back()

    def has_changed(self) -> bool:
        """Return whether the file was written to since it was opened; raises SourceError."""
        with self.descriptor() as fd:
            now = None if fd is None or self.mtime_ns is None else os.fstat(fd)
        return now is not None and (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns)

    def folder(self) -> LocalFolder:
        """Return the folder the file is in."""
        return LocalFolder(os.path.dirname(self.path) or ".")

    def close(self) -> None:
        """Close the file for ever."""
        self._descriptor.close()

    def __copy__(self) -> LocalFile:
        """Return the file itself: a copy would share its descriptor, and could close it for both objects."""
        return self

    def __deepcopy__(self, memo: object) -> LocalFile:
        """Return the file itself."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{escape(self.uri)} is open and cannot be pickled; open it again where it is needed")

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(f"{escape(self.uri)} cannot be read: {error.strerror or error}.")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self._descriptor.close()


def is_local(file: File | None) -> TypeGuard[File]:
    """Return whether a file is on this machine, is open, and is complete (not a shard that ``--consume`` deleted)."""
    return file is not None and not (file.remote or file.closed or isinstance(file, ConsumedFile))


def take_zeros(files: Mapping[str, File], names: Collection[str] | None = None) -> dict[str, list[int]]:
    """Return {name of a file: offsets of its pages of zeros that were found since the last call}.

    With ``names``, only the files with these names are looked at: a model may have 10,000 files.
    """
    found: dict[str, list[int]] = {}
    for name in files if names is None else names:
        file = files.get(name)
        if isinstance(file, LocalFile) and file.zeros:
            found[name] = sorted(file.zeros)
            file.zeros.clear()
    return found


class ConsumedFile(LocalFile):
    """A consumed shard: a deleted file of which only some bytes are kept; reading other bytes raises SourceError."""

    def __init__(self, path: str, uri: str) -> None:
        super().__init__(path + CONSUMED, uri)
        try:
            self.shard = consumed_shard(self.size, super().read)
        except (LookupError, TypeError, ValueError, FormatError) as error:
            self.close()
            raise FormatError(
                f"{escape(uri + CONSUMED)} is damaged: it does not describe the shard that --consume deleted.",
                rule="consumed",
            ) from error
        self.path, self.name = path, os.path.basename(path)
        self.size, self.mtime_ns, self.unwritten = self.shard.size, self.shard.mtime_ns, ()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes that are kept; raises SourceError for any other bytes."""
        self._check(offset, nbytes)
        return super().read(offset, nbytes)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError for bytes that are not kept."""
        self._check(offset, len(view))
        super().readinto(offset, view)

    @contextmanager
    def descriptor(self) -> Iterator[int | None]:
        """Yield None: with a descriptor, the kernel would copy the deleted bytes (holes) as zeros."""
        yield None

    def _check(self, offset: int, nbytes: int) -> None:
        if not self.shard.has(offset, nbytes):
            raise SourceError(
                f"{escape(self.uri)} was consumed by a run that writes {escape(self.shard.output)}, which was "
                "interrupted: only its header and small tensors are left.",
                hint="Run the interrupted command again.",
            )


class LocalFolder(Folder):
    """A folder on this machine; only files inside the folder are opened."""

    def __init__(self, path: str, uri: str = "") -> None:
        self.path = path
        self.uri = uri or path
        self.name = os.path.basename(os.path.abspath(path))

    def names(self) -> list[str]:
        """Return the names of the regular files in the folder, sorted; subfolders, FIFOs and devices are left out.

        The ``.consumed`` file of a consumed shard is listed under the name of the shard.
        """
        found = self.listed(_is_file)
        left = f".safetensors{CONSUMED}"
        if not any(name.endswith(left) for name in found):
            return found
        return sorted({name.removesuffix(CONSUMED) if name.endswith(left) else name for name in found})

    def folders(self) -> list[str]:
        """Return the names of the subfolders of the folder, sorted."""
        return self.listed(_is_folder)

    def listed(self, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        """Return the names of the entries for which ``wanted`` returns True, sorted.

        Raises SourceError if the folder cannot be listed.
        """
        try:
            with os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if wanted(entry))
        except OSError as error:
            raise SourceError(f"{escape(self.uri)} cannot be listed: {error.strerror}.") from error

    def file(self, name: str) -> LocalFile:
        """Open a file or consumed shard of the folder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        path, uri = os.path.join(self.path, name), os.path.join(self.uri, name)
        if not os.path.lexists(path) and os.path.isfile(path + CONSUMED):
            return ConsumedFile(path, uri)
        return LocalFile(path, uri)

    def inside(self, name: str) -> LocalFolder:
        """Return a subfolder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        return LocalFolder(os.path.join(self.path, name), os.path.join(self.uri, name))


class _Local:
    schemes = ("", "file")

    def open(self, uri: str) -> Source:
        path = uri.removeprefix("file://")
        if os.path.isdir(path):
            return LocalFolder(path, uri)
        if not os.path.lexists(path) and os.path.isfile(path + INDEX):
            return LocalFile(path + INDEX, uri + INDEX)
        if not os.path.lexists(path):
            raise SourceError(f"{escape(uri)} does not exist.", hint=did_you_mean(path))
        return LocalFile(path, uri)


def link_of(source: Source) -> str:
    """Return the target of ``source`` as written in the link, if it is a symbolic link; '' for any other file."""
    if not isinstance(source, LocalFile):
        return ""
    try:
        return os.readlink(source.path)
    except OSError:
        return ""


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _open_regular(path: str, uri: str) -> int:
    try:
        return open_regular(path)
    except IrregularError as error:
        raise SourceError(f"{escape(uri)} is {error.kind}; only regular files are read.") from error
    except OSError as error:
        why = _absent(path) if isinstance(error, FileNotFoundError) else f"cannot be opened: {error.strerror}"
        raise SourceError(f"{escape(uri)} {why}.") from error


def _open_again(path: str, uri: str, identity: tuple[int, ...]) -> int:
    fd = _open_regular(path, uri)
    if _identity(os.fstat(fd)) != identity:
        os.close(fd)
        raise SourceError(
            f"{escape(uri)} has changed since it was opened.",
            hint="Run the command again when no other program writes this file.",
        )
    return fd


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _absent(path: str) -> str:
    if os.path.islink(path):
        return f"is a link to {escape(os.readlink(path))}, which does not exist"
    return "does not exist"


SOURCE = _Local()
