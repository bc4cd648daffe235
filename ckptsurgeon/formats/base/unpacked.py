"""Unpacks a gzip file to a temporary file without a name, so that the archive inside can be read at any position."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from ...errors import FormatError, SourceError, UnsafeError
from ...storage.read.base import Advance, File, Folder
from ...storage.read.http.spool import Spool
from ...util.text import escape
from . import limits

__all__ = ["GZIP", "UnpackedFile", "first_bytes"]

GZIP = b"\x1f\x8b"
_WITH_HEADER = 31
"""zlib's value of ``wbits`` for data with a gzip header and trailer, and the largest window."""
_PIECE = 1 << 20
"""The number of bytes that are unpacked at a time."""


def first_bytes(head: bytes, nbytes: int) -> bytes:
    """Return at most ``nbytes`` bytes from the beginning of a gzip file's content; b"" if the file is damaged.

    ``head`` has the first bytes of the gzip file; if it is short, the result may be shorter.
    """
    try:
        return zlib.decompressobj(_WITH_HEADER).decompress(head, nbytes)
    except zlib.error:
        return b""


class UnpackedFile(File):
    """The content of a gzip file, read like a file. Closing it closes the gzip file, too.

    ``packed_size`` is the size of the gzip file in bytes; ``mtime_ns`` and ``validator`` describe the gzip file. Raises
    FormatError if the gzip file is damaged, UnsafeError if it unpacks to far more bytes than it has, SourceError if
    there is no room for them.
    """

    remote = False

    def __init__(self, packed: File) -> None:
        self.uri, self.name = packed.uri, packed.name
        self.mtime_ns, self.validator, self.packed_size = packed.mtime_ns, packed.validator, packed.size
        self._packed = packed
        self._spool = Spool(packed.uri)
        self.size = 0
        try:
            self._spool.check_room(packed.size)
            for data in _content(packed):
                self._spool.write(self.size, data)
                self.size += len(data)
        except BaseException:
            self._spool.close()
            raise

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset`` on; raises SourceError if there are fewer."""
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; raises SourceError if there are fewer."""
        if self.closed:
            raise SourceError(f"{escape(self.uri)} is closed.")
        if offset < 0 or offset + len(view) > self.size:
            raise SourceError(f"{escape(self.uri)} is too short: its unpacked content has only {self.size} bytes.")
        self._spool.readinto(offset, view)

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: all bytes are on this machine."""

    def keep(self, wanted: bool) -> None:
        """Set whether the fetched bytes of the gzip file, if it is remote, are kept for the next run."""
        self._packed.keep(wanted)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._spool.fileno() < 0

    def has_changed(self) -> bool:
        """Return whether the gzip file was written to since it was opened."""
        return self._packed.has_changed()

    def descriptor(self) -> AbstractContextManager[None]:
        """Return a context whose value is None, because there is no descriptor: no named local file has these bytes."""
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the gzip file."""
        return self._packed.folder()

    def close(self) -> None:
        """Remove the unpacked bytes, and close the gzip file."""
        self._spool.close()
        self._packed.close()

    def __del__(self) -> None:
        if hasattr(self, "_spool"):
            self._spool.close()


def _content(packed: File) -> Iterator[bytes]:
    """Yield the content of a gzip file piece by piece; the file may have several members one after the other.

    Raises FormatError if the gzip file is damaged, UnsafeError if its content is too large.
    """
    from isal import igzip_lib, isal_zlib  # three times as fast as zlib

    packed.need([(0, packed.size)])
    inflater, done, most = isal_zlib.decompressobj(_WITH_HEADER), 0, _most(packed.size)
    data, at = b"", 0
    while True:
        if not data and at < packed.size:
            data = packed.read(at, min(_PIECE, packed.size - at))
            at += len(data)
        if inflater.eof:
            data = (inflater.unused_data + data).lstrip(b"\0")  # a tape's padding may follow
            if not data and at == packed.size:
                return
            if not data:
                continue
            if not data.startswith(GZIP[:1]):
                raise FormatError(f"{escape(packed.uri)} has other bytes after its compressed data.", rule="gzip")
            inflater = isal_zlib.decompressobj(_WITH_HEADER)
        try:
            plain = inflater.decompress(data, _PIECE)
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub does not say that it is an exception
            raise FormatError(f"{escape(packed.uri)} is damaged: {error}.", rule="gzip") from None
        data = inflater.unconsumed_tail
        if not plain and not data and at == packed.size and not inflater.eof:
            raise FormatError(f"{escape(packed.uri)} is truncated: its compressed data do not end.", rule="gzip")
        done += len(plain)
        if done > most:
            raise UnsafeError(
                f"{escape(packed.uri)} unpacks to over {limits.PACKED_EXPANSION} times as many bytes as it has.",
                rule="deflate bomb",
            )
        if plain:
            yield plain


def _most(nbytes: int) -> int:
    return max(limits.EXPANSION_FREE, limits.PACKED_EXPANSION * nbytes)
