"""Reads files on other machines; fetches the needed bytes and few others, and keeps them for later reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn, Protocol

from ...errors import SourceError
from ...util.text import count, escape, human_bytes
from ._intervals import Range, cut, joined, run_in_threads
from .base import Advance, File, Folder, Source
from .http.spool import Spool, digest_of

__all__ = ["Ranges", "RemoteFile", "is_sent_whole", "notes_of", "notes_of_shards"]

BLOCK = 64 << 10
"""A single read fetches whole blocks of this size, because the following bytes are usually read next."""
GAP = 64 << 10
"""Ranges with at most this many bytes between them are one request, because a second request would take longer."""
REQUEST = 4 << 20
"""The most bytes of one request, and so the most bytes that a lost connection loses."""
CONNECTIONS = 4
"""How many requests for one file are sent at the same time."""


class Ranges(Protocol):
    """The interface of a remote file; each kind of address (web, hub, fsspec) has its own implementation.

    ``uri`` contains no credentials. ``validator`` is a string that identifies the content (a commit, a strong ETag), ''
    if there is none. ``digest`` is the hub's digest of the file: SHA-256, or git's SHA-1; '' if there is none.
    """

    @property
    def uri(self) -> str:
        """The file's name in messages and records."""
        ...

    @property
    def name(self) -> str:
        """The last part of the URI."""
        ...

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        ...

    @property
    def validator(self) -> str:
        """A string that identifies the content; '' if there is none."""
        ...

    @property
    def digest(self) -> str:
        """The expected digest of the whole file; '' if it is unknown."""
        ...

    def stream(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield exactly ``nbytes`` bytes from ``offset``, in order; raises SourceError if they cannot be fetched."""
        ...

    def folder(self) -> Folder:
        """Return the folder that contains the file."""
        ...


class RemoteFile(File):
    """A file on another machine; ``is_sent_whole`` is true if its server does not support range requests."""

    remote = True
    mtime_ns: int | None = None

    def __init__(self, wire: Ranges, spool: Spool | None = None, *, is_sent_whole: bool = False) -> None:
        self.uri, self.name, self.size = wire.uri, wire.name, wire.size
        self.validator = wire.validator
        self.is_sent_whole = is_sent_whole
        self._wire = wire
        self._spool = spool or Spool(wire.uri)
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._late: SourceError | None = None
        self._digest = wire.digest
        self._check_whole()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset`` on; raises SourceError if the file ends before."""
        self._ensure(offset, nbytes)
        buffer = bytearray(nbytes)
        self._spool.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; raises SourceError if the file ends before."""
        self._ensure(offset, len(view))
        self._spool.readinto(offset, view)

    def need(self, ranges: Iterable[Range], advance: Advance | None = None) -> None:
        """Fetch the (begin, end) ranges together: in few requests, several at a time.

        ``advance`` is called with the number of bytes received.
        """
        with self._lock, self._wanted():
            missing = [part for begin, end in ranges for part in self._spool.missing(begin, end)]
            if missing and self._late is not None:  # an earlier call exceeded its time limit
                raise self._late
            try:
                self._fetch(cut(joined(missing, GAP), REQUEST), advance)
            except SourceError as error:
                self._late = error if error.rule == "late" else None
                raise
            self._check_whole()

    def keep(self, wanted: bool) -> None:
        """Set whether the fetched bytes are kept for the next run if this run fails."""
        self._spool.is_wanted = wanted

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._spool.fileno() < 0

    def descriptor(self) -> AbstractContextManager[int | None]:
        """Return a context whose value is the descriptor of the local copy.

        While the local copy is incomplete, the value is None, since missing bytes would be read as zeros.
        """
        return nullcontext(None if self.closed or self._spool.missing(0, self.size) else self._spool.fileno())

    def folder(self) -> Folder:
        """Return the folder that contains the file."""
        return self._wire.folder()

    def close(self) -> None:
        """Close the local copy."""
        with self._writing:
            self._spool.close()

    def __copy__(self) -> RemoteFile:
        """Return this object itself: a copy would share its descriptor, and could close it for both objects."""
        return self

    def __deepcopy__(self, memo: object) -> RemoteFile:
        """Return this object itself, as ``__copy__`` does."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{escape(self.uri)} is open and cannot be pickled; open it again where it is needed")

    def __del__(self) -> None:
        if hasattr(self, "_spool"):
            self._spool.close()

    def _ensure(self, offset: int, nbytes: int) -> None:
        """Fetch the missing bytes of a range, in whole blocks of ``BLOCK`` bytes.

        Raises SourceError if the range is not in the file, or if the file is closed.
        """
        if self.closed:
            raise SourceError(f"{escape(self.uri)} is closed.")
        if offset < 0 or offset + nbytes > self.size:
            raise SourceError(f"{escape(self.uri)} ended at byte {self.size} while it was read.")
        if self._spool.missing(offset, offset + nbytes):
            self.need([(offset - offset % BLOCK, min(self.size, -(-(offset + nbytes) // BLOCK) * BLOCK))])

    def _check_whole(self) -> None:
        """Compare the file with its expected digest as soon as it is complete; raises SourceError if they differ."""
        if not self._digest or not self.size or self._spool.missing(0, self.size):
            return
        said, self._digest = self._digest, ""
        if digest_of(self._spool, self.size, said) != said:
            self._spool.is_wanted = False  # so that it is not kept for the next run
            self._spool.close()
            raise SourceError(f"{escape(self.uri)} does not match the hub: its digest differs.", hint="Try again.")

    @contextmanager
    def _wanted(self) -> Iterator[None]:
        """If the block fails, keep the received bytes for the next run."""
        before, self._spool.is_wanted = self._spool.is_wanted, True
        yield
        self._spool.is_wanted = before

    def _fetch(self, pieces: list[Range], advance: Advance | None) -> None:
        def fetch(piece: Range, stopped: threading.Event) -> None:
            self._fetch_one(piece, advance, stopped)

        if len(pieces) > 1:
            run_in_threads(pieces, fetch, CONNECTIONS)
        elif pieces:
            fetch(pieces[0], threading.Event())

    def _fetch_one(self, piece: Range, advance: Advance | None, stopped: threading.Event) -> None:
        at, end = piece
        for data in self._wire.stream(at, end - at):
            with self._writing:
                if stopped.is_set():  # and the spool may be closed
                    return
                self._spool.write(at, data)
                at += len(data)
                if advance is not None:
                    advance(len(data))


def notes_of(source: Source) -> tuple[str, ...]:
    """Return a note if the server of a source sent the whole file; () if not."""
    if not (isinstance(source, RemoteFile) and source.is_sent_whole):
        return ()
    said = f"the whole file was fetched ({human_bytes(source.size)})"
    return (f"the server of {escape(source.uri)} does not support range requests: {said}",)


def notes_of_shards(index: Source, shards: Sequence[Source]) -> tuple[str, ...]:
    """Return a note if the server sent whole shards of the model with the index ``index``; () if not."""
    sent = [one for one in shards if isinstance(one, RemoteFile) and one.is_sent_whole]
    if not sent:
        return ()
    shards_were = f"{count(len(sent), 'shard')} {'was' if len(sent) == 1 else 'were'}"
    said = f"{shards_were} fetched completely ({human_bytes(sum(one.size for one in sent))})"
    return (f"the server of {escape(index.uri)} does not support range requests: {said}",)


def is_sent_whole(source: Source) -> bool:
    """Return whether the server of a source sent the whole file, because it does not support range requests."""
    return isinstance(source, RemoteFile) and source.is_sent_whole
