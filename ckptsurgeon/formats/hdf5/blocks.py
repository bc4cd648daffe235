"""Reads blocks of metadata in an HDF5 file; refuses blocks beyond the file's end, repeated blocks, too many bytes.

HDF5 File Format Specification 3.0, https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html. Addresses count
from the superblock, which may follow a user block.
"""

from __future__ import annotations

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ..base import limits
from .checksums import lookup3

__all__ = ["BlockReader", "Fields", "cut_short", "malformed"]

_PAGE = 1 << 14
_PAGES = 64
"""The number of pages of a file that stay in memory, and the bytes of a page: related metadata are close together."""


def cut_short(what: str) -> FormatError:
    """Return the error for a part of the file, ``what``, that reaches beyond the end of the file."""
    said = f"the file is truncated or damaged: {what} reaches beyond its end."
    return FormatError(said, hint="Fetch or save this file again.", rule="cut short")


def malformed(what: str, why: str) -> FormatError:
    """Return the error for a part of the file, ``what``, that breaks a rule of the format; ``why`` is the reason."""
    return FormatError(f"the HDF5 file is damaged: {what} {why}.", rule="hdf5")


class Fields:
    """The bytes of one block, read from front to back; ``what`` is the block's name in messages.

    ``at`` is the number of bytes that were read.
    """

    __slots__ = ("at", "data", "what")

    def __init__(self, data: bytes, what: str, at: int = 0) -> None:
        self.data, self.what, self.at = data, what, at

    @property
    def left(self) -> int:
        """The number of bytes that are left to read."""
        return len(self.data) - self.at

    def take(self, nbytes: int) -> bytes:
        """Return the next bytes; raises FormatError if the block has fewer."""
        if nbytes > self.left:
            raise malformed(self.what, "is too short")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def number(self, nbytes: int) -> int:
        """Return the next unsigned number, little-endian; raises FormatError if the block is too short."""
        return int.from_bytes(self.take(nbytes), "little")


class BlockReader:
    """Reads blocks of ``file``; addresses count from ``base``, the offset of the superblock.

    ``offset_size`` and ``length_size`` are the sizes of an address and of a length in bytes. ``blocks`` has the (begin,
    end) in the file of all blocks that were read. In the methods, ``what`` is the name of a block for messages.
    """

    def __init__(self, file: File, base: int) -> None:
        self.file, self.base = file, base
        self.size = file.size - base
        self.offset_size = self.length_size = 8
        self.blocks: list[tuple[int, int]] = []
        self._begun: set[int] = set()
        self._pages: dict[int, bytes] = {}
        self._left = limits.HDF5_METADATA
        self._checked = limits.HDF5_CHECKED
        self._chunks = limits.HDF5_CHUNKS

    @property
    def undefined(self) -> int:
        """The number that a file stores in place of an address if there is none: all bits are set."""
        return (1 << 8 * self.offset_size) - 1

    def peek(self, address: int, nbytes: int, what: str) -> bytes:
        """Return ``nbytes`` bytes of the part ``what`` of the file, from ``address`` on.

        Raises FormatError if the file has fewer bytes, UnsafeError if more metadata than the limit was read.
        """
        if address + nbytes > self.size:
            raise cut_short(what)
        self._left -= nbytes
        if self._left < 0:
            raise UnsafeError(
                f"the file has more metadata than the limit of {limits.HDF5_METADATA >> 20} MB.", rule="hdf5 metadata"
            )
        if not nbytes:
            return b""
        at = self.base + address
        first, last = at // _PAGE, (at + nbytes - 1) // _PAGE
        if first < last:
            return self.file.read(at, nbytes)
        return self._page(first)[at - first * _PAGE : at - first * _PAGE + nbytes]

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= _PAGES:
                del self._pages[next(iter(self._pages))]
            begin = number * _PAGE
            page = self._pages[number] = self.file.read(begin, min(_PAGE, self.file.size - begin))
        return page

    def block(self, address: int, nbytes: int, what: str, magic: bytes = b"") -> Fields:
        """Return the bytes of a block after its ``magic`` bytes; raises FormatError if the block was read before.

        So it is an error if blocks refer to each other in a circle.
        """
        if address in self._begun:
            raise malformed(what, "is at the address of another part, or refers to itself")
        data = self.peek(address, nbytes, what)
        if not data.startswith(magic):
            raise malformed(what, f"does not begin with {magic.decode()}")
        self._begun.add(address)
        self.blocks.append((self.base + address, self.base + address + nbytes))
        return Fields(data, what, len(magic))

    def checked(self, address: int, nbytes: int, what: str, magic: bytes = b"") -> Fields:
        """Return a block without the checksum in its last four bytes; raises FormatError if the checksum is wrong."""
        fields = self.block(address, nbytes, what, magic)
        self.check(fields.data, what)
        fields.data = fields.data[:-4]
        return fields

    def check(self, data: bytes, what: str) -> None:
        """Raise FormatError unless the last four bytes of ``data`` are the checksum of all bytes before them.

        Raises UnsafeError if more metadata with checksums than the limit was read.
        """
        self._checked -= len(data)
        if self._checked < 0:
            raise UnsafeError(
                f"the file has more metadata with checksums than the limit of {limits.HDF5_CHECKED >> 20} MB.",
                rule="hdf5 metadata",
            )
        if lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise FormatError(f"the HDF5 file is damaged: {what} does not match its checksum.", rule="hdf5 checksum")

    def spend_chunks(self, number: int) -> None:
        """Count ``number`` more chunks of a dataset; raises UnsafeError if all datasets together have too many."""
        self._chunks -= number
        if self._chunks < 0:
            raise UnsafeError(f"the datasets have more than {limits.HDF5_CHUNKS:,} chunks.", rule="hdf5 chunks")

    def address(self, fields: Fields) -> int | None:
        """Return the address that comes next in ``fields``; None if it is undefined."""
        found = fields.number(self.offset_size)
        return None if found == self.undefined else found

    def needed(self, fields: Fields, what: str) -> int:
        """Return the address that comes next in ``fields``; raises FormatError if it is undefined.

        ``what`` is the name of the part of the file that contains the address, for the message.
        """
        found = self.address(fields)
        if found is None:
            raise malformed(what, "has no address")
        return found

    def length(self, fields: Fields) -> int:
        """Return the length that comes next in ``fields``."""
        return fields.number(self.length_size)
