"""Replaces the headers of safetensors files in place: all of them or none, while no other process has a file open.

Values may be a million times as large as their header, so they are not written again. Five steps, each on disk before
the next begins:

1. A journal next to the file gets the old headers.
2. The length of each header becomes ``REPLACED``, which every reader refuses.
3. The new headers are written after the lengths.
4. If there is an index, the new one is put in its place by one rename.
5. The lengths are written again. The journal is removed.

So no reader ever takes a mixture of two headers for a header. After a run that was killed, ``settle_interrupted``
finishes the change if the new index is in place, and else writes the old headers back. During the change, a lease on
each file keeps other processes out: the kernel grants the lease if no other process has the file open or mapped, and
a process that opens the file then waits.

Linux man-pages: fcntl(2), "Leases".
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import sync, sync_folder
from ..header_journals import SUFFIX, journals_of
from ..json_text import read_json
from ..replaced_header import REPLACED
from ..small_files import read_file
from .output_paths import output_error, output_lock, stem

__all__ = ["RECORD", "NewHeader", "check_alone", "replace_headers", "settle_interrupted"]

MOST_BYTES = 1 << 30
KIND, VERSION = "ckpt.headers", 1
LENGTH = len(REPLACED)
ORDINARY = "Write a new file with -o."
RECORD = ".rename"
"""The name of the file that describes a change begins with the name of the changed file (or index) and this text."""


class NewHeader(NamedTuple):
    """A header to replace in the file ``path``: ``old`` is its present length and header, ``new`` the new bytes."""

    path: str
    old: bytes
    new: bytes


@dataclass(frozen=True)
class _Journal:
    """The journal of one change, from which the change can be finished or undone.

    ``old`` is {name: old header} of the files in ``folder``. ``name`` is the name of the file, or of the index, that
    the user passed. ``index`` is the SHA-256 of the new index, '' if there is no index. ``record`` is the name of the
    file that describes the change.
    """

    folder: str
    name: str
    old: dict[str, bytes]
    index: str
    record: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, f"{stem(self.name)}{SUFFIX}")

    def write(self) -> None:
        """Write the journal and wait until it is on disk; raises OSError."""
        sizes = {name: len(old) for name, old in self.old.items()}
        head = {"kind": KIND, "version": VERSION, "name": self.name, "sizes": sizes}
        data = json.dumps({**head, "index": self.index, "record": self.record}).encode() + b"\n"
        data += b"".join(self.old.values())
        _write_new(self.path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    def remove(self) -> None:
        """Remove the journal, and wait until this is on disk; raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        sync_folder(self.folder)


def replace_headers(
    path: str,
    headers: Sequence[NewHeader],
    record: tuple[str, bytes],
    index: bytes | None = None,
    *,
    wait: float | None = None,
) -> None:
    """Replace the headers of files in one folder, and the index at ``path`` if ``index`` has its new bytes.

    ``record`` is the name and the content of a new file that describes the change. ``wait`` is how many seconds to wait
    for another run to finish. Raises OutputError; then all files are as before, unless the message says that they
    cannot be read now.
    """
    folder, name = os.path.split(os.path.abspath(path))
    old = {os.path.basename(one.path): one.old for one in headers}
    journal = _Journal(folder, name, old, hashlib.sha256(index).hexdigest() if index is not None else "", record[0])
    with output_lock(path, wait), ExitStack() as stack:
        files = [stack.enter_context(_alone(one)) for one in headers]
        try:
            with suppress(FileNotFoundError):  # left by a run that was interrupted before or after its change
                os.unlink(journal.path)
            journal.write()
            _write_new(os.path.join(folder, record[0]), record[1])
            _write_each([(fd, REPLACED) for fd in files], 0)
            _write_each([(fd, one.new[LENGTH:]) for fd, one in zip(files, headers, strict=True)], LENGTH)
            if index is not None:
                _put(path, index)
            _write_each([(fd, one.new[:LENGTH]) for fd, one in zip(files, headers, strict=True)], 0)
            journal.remove()
        except BaseException as error:
            is_new = _settle_after(error, journal, dict(zip(old, files, strict=True)))
            if is_new and isinstance(error, OSError):
                return
            if isinstance(error, OSError):
                raise output_error(path, error) from error
            raise


def check_alone(path: str) -> None:
    """Raise OutputError if the header of a file cannot be replaced in place.

    That is possible if it is not a link, has no hard links, and no other process has it open or can open it meanwhile.
    """
    with suppress(FileNotFoundError), _open_alone(path):
        pass


def settle_interrupted(path: str) -> list[str]:
    """Finish or undo the changes of headers that interrupted runs have begun in the file or folder ``path``.

    Returns notes on them. Raises OutputError if a run is still at work, or if the files cannot be written.
    """
    notes = []
    folder, journals = journals_of(path)
    for found in journals:
        own = _read(found)
        if own is not None and folder != path and os.path.basename(path) not in (own.name, *own.old):
            continue
        output = os.path.join(folder, os.path.basename(found)[1 : -len(SUFFIX) - 1])
        with output_lock(output, hint="Run the command again when that process has ended."):
            journal = _read(found)
            if journal is None:
                with suppress(OSError):  # not complete: it was written before anything was changed
                    os.unlink(found)
                continue
            try:
                with ExitStack() as stack:
                    files = {name: stack.enter_context(_opened(os.path.join(folder, name))) for name in journal.old}
                    is_new = _settle(journal, files, undo=False)
            except OSError as error:
                raise _unsettled(journal, error) from error
        done = "finished" if is_new else "undone"
        notes.append(f"ckpt rename --in-place of {escape(journal.name)} was interrupted; it is {done} now")
    return notes


@contextmanager
def _alone(one: NewHeader) -> Iterator[int]:
    """Open a file for writing, and keep other processes out of it until the block ends.

    Raises OutputError if that is impossible, or if the header is no longer ``one.old``.
    """
    with _open_alone(one.path) as fd:
        if os.pread(fd, len(one.old), 0) != one.old:
            raise OutputError(
                f"{escape(one.path)} has changed since it was read.",
                hint="Run the command again; if it applies a plan, make the plan again first.",
            )
        yield fd


@contextmanager
def _open_alone(path: str) -> Iterator[int]:
    if os.path.islink(path):
        raise OutputError(
            f"{escape(path)} is a link to {escape(os.readlink(path))}: its header is not replaced in place, as "
            "the file would also change under its other paths.",
            hint=ORDINARY,
        )
    try:
        with _opened(path) as fd:
            _lease(fd, path)
            yield fd
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a regular file for writing until the block ends; raises OutputError for hard links, or OSError."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_nlink > 1:
            raise OutputError(
                f"{escape(path)} has {found.st_nlink} names (hard links): its header is not replaced in place, as the "
                "file would change under all these names.",
                hint=ORDINARY,
            )
        yield fd
    finally:
        os.close(fd)  # this also ends the lease, if there is one


def _lease(fd: int, path: str) -> None:
    """Keep other processes from opening a file until ``fd`` is closed; raises OutputError if one has it open."""
    if not hasattr(fcntl, "F_SETLEASE"):
        raise _shared(path)
    try:
        # SIGURG is sent when another process waits for the file; unlike SIGIO, it does not end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise OutputError(
                f"{escape(path)} is open in this or another program, which could read a half-written header.",
                hint=f"Close it. {ORDINARY}",
            ) from error
        raise _shared(path) from error


def _shared(path: str) -> OutputError:
    return OutputError(
        f"the header of {escape(path)} is not replaced in place: this system cannot keep other programs from reading "
        "the file meanwhile.",
        hint=ORDINARY,
    )


def _write_each(files: Sequence[tuple[int, bytes]], offset: int) -> None:
    """Write bytes at ``offset`` of each file, then wait until all are on disk; raises OSError.

    ``files`` has (descriptor, bytes to write) of each file.
    """
    for fd, data in files:
        at, left = offset, memoryview(data)
        while left:
            done = os.pwrite(fd, left, at)
            at, left = at + done, left[done:]
    for fd, _ in files:
        sync(fd)


def _write_new(path: str, data: bytes) -> None:
    """Write a new file, and wait until it is on disk; raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _write_each([(fd, data)], 0)
    finally:
        os.close(fd)
    sync_folder(os.path.dirname(path))


def _put(path: str, data: bytes) -> None:
    """Atomically replace the file ``path`` by a file with the bytes ``data``; raises OSError."""
    temp = os.path.join(os.path.dirname(os.path.abspath(path)), f"{stem(os.path.basename(path))}ckpt-index")
    with suppress(FileNotFoundError):
        os.unlink(temp)
    _write_new(temp, data)
    os.replace(temp, path)
    sync_folder(os.path.dirname(temp))


def _settle_after(error: BaseException, journal: _Journal, files: dict[str, int]) -> bool:
    """Settle a change that failed with ``error``: finish it if the new index is in place, else undo it.

    ``files`` has a descriptor of each file by name. Returns True if the change was finished. Raises OutputError if
    undoing or finishing fails, too.
    """
    try:
        return _settle(journal, files, undo=True)
    except OSError:
        raise _unreadable(journal, error) from error


def _unreadable(journal: _Journal, error: BaseException) -> OutputError:
    path = os.path.join(journal.folder, journal.name)
    why = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return OutputError(
        f"the change of headers in {escape(path)} failed ({escape(str(why))}), and so did undoing it: the files cannot "
        "be read now.",
        hint=f"ckpt check restores the files: the old headers are in {escape(journal.path)}.",
    )


def _unsettled(journal: _Journal, error: OSError) -> OutputError:
    path = os.path.join(journal.folder, journal.name)
    return OutputError(
        f"ckpt rename --in-place of {escape(path)} was interrupted, and could not be finished or undone now "
        f"({escape(error.strerror or str(error))}): the files cannot be read.",
        hint=f"Remove this cause, and run ckpt check: the old headers are in {escape(journal.path)}.",
    )


def _settle(journal: _Journal, files: dict[str, int], *, undo: bool) -> bool:
    """Finish or undo a change, and remove the journal; return True if the change was finished. Raises OSError.

    A change with an index is finished if the new index is in place; otherwise it is undone. A change without an index
    is finished if the file already has the new header with its length and ``undo`` is false; otherwise it is undone.
    """
    is_new = bool(journal.index) and _digest(os.path.join(journal.folder, journal.name)) == journal.index
    for name, fd in files.items():
        old = journal.old[name]
        now = os.pread(fd, len(old), 0)
        if now[:LENGTH] != REPLACED and not (undo and now != old and not is_new):
            is_new = is_new or now != old
            continue
        if not is_new:
            _write_each([(fd, REPLACED)], 0)
            _write_each([(fd, old[LENGTH:])], LENGTH)
        _write_each([(fd, old[:LENGTH])], 0)  # a new header is as long as the old one
    if not is_new:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(journal.folder, journal.record))
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(journal.folder, f"{stem(journal.name)}ckpt-index"))
    journal.remove()
    return is_new


def _digest(path: str) -> str:
    return hashlib.sha256(read_file(path, MOST_BYTES)).hexdigest()


def _read(path: str) -> _Journal | None:
    """Return the journal in the file ``path``; None if it is not complete."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        digest, _, data = read_file(path, MOST_BYTES).partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() == digest:
            return _journal(os.path.dirname(path), data)
    return None


def _journal(folder: str, data: bytes) -> _Journal | None:
    line, _, rest = data.partition(b"\n")
    head = read_json(line.decode())
    names = [head["name"], head["record"], *head["sizes"]]
    if (head["kind"], head["version"]) != (KIND, VERSION) or any(os.path.basename(one) != one for one in names):
        return None
    if not head["record"].startswith(f"{head['name']}{RECORD}"):  # else any file could be removed
        return None
    old, at = {}, 0
    for name, size in head["sizes"].items():
        old[name], at = rest[at : at + size], at + size
    is_whole = at == len(rest) and all(
        int.from_bytes(one[:LENGTH], "little") == len(one) - LENGTH for one in old.values()
    )
    return _Journal(folder, head["name"], old, head["index"], head["record"]) if is_whole else None
