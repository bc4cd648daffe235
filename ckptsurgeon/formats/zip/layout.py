"""Lays out zip archives whose records are not compressed; the tensors need not be in memory for this.

An extra field aligns each record to 64 bytes, as in ``torch.save``.

PKWARE APPNOTE 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Sizes and checksums are in the local
headers, so there are no data descriptors. No times are stored, so the same content gives the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ZipLayout", "ZipRecord"]

_ALIGN = 64
_FULL = 0xFFFFFFFF
_UTF8 = 0x800


@dataclass(slots=True)
class ZipRecord:
    """A record of an archive: its name, its size in bytes, and the offsets of its local header and of its content.

    ``content`` is None for the record of a tensor, whose key is ``key``: the bytes of the tensor are written later,
    after the bytes ``lead``.
    """

    name: bytes
    size: int
    content: bytes | None
    header: int = 0
    data: int = 0
    key: str = ""
    lead: bytes = b""

    @property
    def wide(self) -> bool:
        """Whether the size is too large for a 32-bit field, so that the record needs zip64."""
        return self.size >= _FULL

    def place(self, at: int) -> int:
        """Set the offsets of a record that begins at ``at``, and return the offset of the next record."""
        self.header = at
        head = at + 30 + len(self.name) + (20 if self.wide else 0)
        pad = -head % _ALIGN
        pad += _ALIGN if 0 < pad < 4 else 0  # an extra field has at least four bytes: its id and length
        self.data = head + pad
        return self.data + self.size

    def local(self, crc: int) -> bytes:
        """Return the bytes of the record's local header; ``crc`` is the CRC-32 of its content."""
        size = _FULL if self.wide else self.size
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.size) if self.wide else b""
        pad = self.data - self.header - 30 - len(self.name) - len(extra)
        if pad:
            extra += struct.pack("<2s H", b"FB", pad - 4) + b"Z" * (pad - 4)
        version = 45 if self.wide else 20
        fixed = struct.pack(
            "<4s5H3L2H", b"PK\3\4", version, _UTF8, 0, 0, 0, crc, size, size, len(self.name), len(extra)
        )
        return fixed + self.name + extra

    def checksum(self, of_tensor: int) -> int:
        """Return the CRC-32 of a tensor's record, which has ``lead`` before the tensor's bytes.

        ``of_tensor`` is the CRC-32 of the tensor's bytes alone.
        """
        if not self.lead:
            return of_tensor
        from isal import isal_zlib

        return isal_zlib.crc32_combine(zlib.crc32(self.lead), of_tensor, self.size - len(self.lead))

    def central(self, crc: int) -> bytes:
        """Return the bytes of the record's entry in the central directory; ``crc`` is the CRC-32 of its content."""
        far = self.header >= _FULL
        size = _FULL if self.wide else self.size
        values = ([self.size, self.size] if self.wide else []) + ([self.header] if far else [])
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        version = 45 if values else 20
        header = _FULL if far else self.header
        return (
            struct.pack("<4s6H3L5H2L", b"PK\1\2", version, version, _UTF8, 0, 0, 0, crc, size, size,
                        len(self.name), len(extra), 0, 0, 0, 0, header)
            + self.name + extra
        )  # fmt: skip


def _end(number: int, size: int, offset: int) -> bytes:
    """Return the end record of the directory, preceded by a zip64 end record if a number is too large.

    ``number`` is the number of records, ``size`` the size of the directory in bytes, ``offset`` its offset.
    """
    wide = number >= 0xFFFF or size >= _FULL or offset >= _FULL
    end64 = b""
    if wide:
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, size, offset)
        end64 += struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
    few = min(number, 0xFFFF)
    return end64 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, few, few, min(size, _FULL), min(offset, _FULL), 0)


class ZipLayout:
    """The layout of an archive: the given records, then a record called ``recipe_name`` if there is a recipe."""

    def __init__(self, records: Sequence[ZipRecord], recipe: Sequence[str] = (), recipe_name: str = "") -> None:
        self._records = list(records)
        self._recipe_name = recipe_name.encode()
        if recipe:
            raw = "".join(recipe).encode()
            self._records.append(ZipRecord(self._recipe_name, len(raw), raw))
        at = 0
        for record in self._records:
            at = record.place(at)
        self._directory = at
        self.slots: Mapping[str, tuple[int, int]] = {
            record.key: (record.data + len(record.lead), record.size - len(record.lead))
            for record in self._records
            if record.content is None
        }
        self.size = at + len(self._tail({}))

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes outside the tensors, as (offset, bytes) in order."""
        start, piece = 0, b""
        crcs: dict[bytes, int] = {}
        for record in self._records:
            content = "".join(recipe).encode() if record.name == self._recipe_name else record.content
            crc = record.checksum(checksums[record.key]) if content is None else zlib.crc32(content)
            crcs[record.name] = crc
            piece += record.local(crc) + (record.lead if content is None else content)
            if content is None:
                yield start, piece
                start, piece = record.data + record.size, b""
        yield start, piece + self._tail(crcs)

    def _tail(self, crcs: Mapping[bytes, int]) -> bytes:
        directory = b"".join(record.central(crcs.get(record.name, 0)) for record in self._records)
        return directory + _end(len(self._records), len(directory), self._directory)
