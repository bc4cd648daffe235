"""Reads the header of a GGUF file piece by piece, and computes its digest."""

from __future__ import annotations

import hashlib
import struct

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ..base import limits

__all__ = ["Cursor", "cut_short"]

_FIRST = 1 << 16
_PIECE = 1 << 20
"""How many bytes are read at once: ``_FIRST`` at the beginning of a file, later ``_PIECE``."""
_LENGTH = struct.Struct("<Q")


def cut_short(what: str) -> FormatError:
    """Return the error for a truncated file that ends inside the part ``what``."""
    return FormatError(
        f"the file is truncated: it ends inside {what}.", hint="Fetch or save this file again.", rule="cut short"
    )


class Cursor:
    """A position in the header of a file, which only moves forward.

    ``within`` is the name of the part of the header at this position, for messages.

    Raises FormatError for bytes beyond the end of the file, UnsafeError for a header that is too large.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._start = 0
        self._buffer = b""
        self._at = 0
        self.within = "its header"

    @property
    def offset(self) -> int:
        """The offset in the file."""
        return self._start + self._at

    def check(self, nbytes: int) -> None:
        """Raise FormatError if the file has fewer than ``nbytes`` more bytes.

        Raises UnsafeError if the header would become too large.
        """
        if self.offset + nbytes > self._file.size:
            raise cut_short(self.within)
        if self.offset + nbytes > limits.GGUF_HEADER_BYTES:
            raise UnsafeError(
                f"the header has more than {limits.GGUF_HEADER_BYTES >> 20} MB: {self.within} is too large.",
                rule="header size",
            )

    def take(self, nbytes: int) -> bytes:
        """Return the next ``nbytes`` bytes, and move the position past them."""
        self.check(nbytes)
        if self._at + nbytes > len(self._buffer):
            self._fill(nbytes)
        self._at += nbytes
        return self._buffer[self._at - nbytes : self._at]

    def skip(self, nbytes: int) -> None:
        """Move past the next ``nbytes`` bytes."""
        self.check(nbytes)
        while nbytes:
            if self._at == len(self._buffer):
                self._fill(1)
            step = min(nbytes, len(self._buffer) - self._at)
            self._at += step
            nbytes -= step

    def skip_texts(self, number: int) -> None:
        """Move past the next ``number`` strings; each is stored after its length."""
        self.check(8 * number)
        while number:
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while number and at <= last:
                at += 8 + _LENGTH.unpack_from(buffer, at)[0]
                number -= 1
            beyond = max(at - len(buffer), 0)
            self._at = min(at, len(buffer))
            if beyond:
                self.skip(beyond)
            elif number:
                self.check(8)
                self._fill(8)

    def number(self) -> int:
        """Return the next unsigned integer of 64 bits."""
        found: int = _LENGTH.unpack(self.take(8))[0]
        return found

    def small_number(self) -> int:
        """Return the next unsigned integer of 32 bits."""
        return int.from_bytes(self.take(4), "little")

    def digest(self) -> str:
        """Return the SHA-256 of the bytes from the beginning of the file to the current position."""
        digest = self._digest.copy()
        digest.update(self._buffer[: self._at])
        return digest.hexdigest()

    def _fill(self, nbytes: int) -> None:
        """Refill the buffer: it then begins at the current position and has at least ``nbytes`` bytes."""
        self._digest.update(self._buffer[: self._at])
        kept = self._buffer[self._at :]
        self._start, self._at = self._start + self._at, 0
        begin = self._start + len(kept)
        size = max(nbytes - len(kept), _PIECE if begin else _FIRST)
        self._buffer = kept + self._file.read(begin, min(size, self._file.size - begin))
