"""Files on other machines, of which only what is read is fetched, and nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

from ..errors import SourceError
from ..text import escape
from ._intervals import Range, cut, joined
from ._parallel import each
from ._spool import Spool
from .base import Advance, Folder, Source

__all__ = ["Ranges", "RemoteFile", "notes_of"]

BLOCK = 64 << 10
"""A single read fetches whole blocks of this size: what follows is mostly read next."""
GAP = 64 << 10
"""Ranges with at most this many bytes between them are one request: about what a round trip costs."""
REQUEST = 4 << 20
"""Bytes of one request at most: what is lost with a connection is asked for again."""
CONNECTIONS = 4


class Ranges(Protocol):
    """The far end of a file: what a kind of address must offer.

    ``uri`` has no credentials in it. ``validator`` tells this content from any other (a commit, a strong ETag); it is
    empty where nothing does.
    """

    @property
    def uri(self) -> str:
        """What messages and records call it."""
        ...

    @property
    def name(self) -> str:
        """The last part of it."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        ...

    @property
    def validator(self) -> str:
        """What no other content has."""
        ...

    def stream(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield exactly ``nbytes`` bytes from ``offset``, in order; raises SourceError where they cannot be had."""
        ...

    def folder(self) -> Folder:
        """Return the folder the file lies in."""
        ...


class RemoteFile:
    """A file as ``File`` describes it; ``notes`` is what its user should know of how it was had."""

    remote = True
    mtime_ns: int | None = None

    def __init__(self, wire: Ranges, spool: Spool | None = None, notes: tuple[str, ...] = ()) -> None:
        self.uri, self.name, self.size = wire.uri, wire.name, wire.size
        self.validator = wire.validator
        self.notes = notes
        self._wire = wire
        self._spool = spool or Spool(wire.uri)
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises SourceError when the file ends before."""
        self._ensure(offset, nbytes)
        buffer = bytearray(nbytes)
        self._spool.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises SourceError when the file ends before."""
        self._ensure(offset, len(view))
        self._spool.readinto(offset, view)

    def need(self, ranges: Iterable[Range], advance: Advance | None = None) -> None:
        """Fetch (begin, end) ranges in few requests, several at a time; ``advance`` is told the bytes that came."""
        with self._lock, self._wanted():
            missing = [part for begin, end in ranges for part in self._spool.missing(begin, end)]
            self._fetch(cut(joined(missing, GAP), REQUEST), advance)

    def keep(self, wanted: bool) -> None:
        """Say whether a run needs what was fetched, so that it outlasts one that fails."""
        self._spool.is_wanted = wanted

    def fileno(self) -> int | None:
        """Return the descriptor of the local copy, None while it has holes that would be copied as zeros."""
        fd = self._spool.fileno()
        return None if fd >= 0 and self._spool.missing(0, self.size) else fd

    def folder(self) -> Folder:
        """Return the folder the file lies in."""
        return self._wire.folder()

    def close(self) -> None:
        """Let go of what was fetched."""
        with self._writing:
            self._spool.close()

    def __copy__(self) -> RemoteFile:
        """Return the file itself: a second owner of one descriptor would close it under the first."""
        return self

    def __deepcopy__(self, memo: object) -> RemoteFile:
        """Return the file itself."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{escape(self.uri)} is open and cannot be pickled; open it anew where it is wanted")

    def __del__(self) -> None:
        if hasattr(self, "_spool"):
            self._spool.close()

    def _ensure(self, offset: int, nbytes: int) -> None:
        """Fetch what a read wants and has not come yet, in whole blocks."""
        if self._spool.fileno() < 0:
            raise SourceError(f"{escape(self.uri)} is closed.")
        if offset < 0 or offset + nbytes > self.size:
            raise SourceError(f"{escape(self.uri)} ended at byte {self.size} while it was read.")
        if self._spool.missing(offset, offset + nbytes):
            self.need([(offset - offset % BLOCK, min(self.size, -(-(offset + nbytes) // BLOCK) * BLOCK))])

    @contextmanager
    def _wanted(self) -> Iterator[None]:
        """Keep what has come if the rest does not."""
        before, self._spool.is_wanted = self._spool.is_wanted, True
        yield
        self._spool.is_wanted = before

    def _fetch(self, pieces: list[Range], advance: Advance | None) -> None:
        def fetch(piece: Range, stopped: threading.Event) -> None:
            self._fetch_one(piece, advance, stopped)

        if len(pieces) > 1:
            each(pieces, fetch, CONNECTIONS)
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
    """Return what is to be said of how a source was had."""
    return source.notes if isinstance(source, RemoteFile) else ()
