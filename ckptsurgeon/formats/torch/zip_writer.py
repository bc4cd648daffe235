"""Lays out zip archives that ``torch.load(weights_only=True)`` opens; the tensors need not be in memory.

Records are not compressed. An extra field aligns them to 64 bytes, as in ``torch.save``. Sizes and checksums are in the
local headers, so there are no data descriptors. No times are stored, so the same tensors give the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...tensors.dtypes import DTYPES
from ..base.header import ExtraEntries, OutTensor
from ..base.limits import TENSORS
from ..base.sharded_writer import IndexedShards
from .pickle_writer import parameters_of, state_dict_pickle

__all__ = ["ZIP_RECORD", "ZipLayout", "ZipWriter"]

ROOT = "archive/"
ZIP_RECORD = f"{ROOT}.data/ckptsurgeon.json"
"""The name of the record with the recipe; torch ignores such records."""

_ALIGN = 64
_FULL = 0xFFFFFFFF
_UTF8 = 0x800


@dataclass(slots=True)
class _Record:
    name: bytes
    size: int
    content: bytes | None
    header: int = 0
    data: int = 0
    key: str = ""

    @property
    def wide(self) -> bool:
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
    """The layout of an archive: a pickle, and one record ``archive/data/NUMBER`` for each tensor of ``owners``.

    ``owners`` are all tensors except those that are tied to an earlier tensor. The scales and zero points of channels
    of a quantised tensor follow in records of their own.
    """

    def __init__(self, pickle: bytes, owners: Sequence[OutTensor], recipe: Sequence[str] = ()) -> None:
        fixed = {"data.pkl": pickle, ".format_version": b"1", ".storage_alignment": b"64", "byteorder": b"little"}
        self._records = [_Record((ROOT + n).encode(), len(c), c) for n, c in fixed.items()]
        for number, tensor in enumerate(owners):
            name = f"{ROOT}data/{number}"
            self._records.append(_Record(name.encode(), tensor.nbytes, None, key=tensor.key))
            parameters = parameters_of(tensor)
            self._records += [_Record(f"{name}{end}".encode(), len(data), data) for end, (_, data) in parameters]
        self._records.append(_Record(f"{ROOT}version".encode(), 2, b"3\n"))
        if recipe:
            raw = "".join(recipe).encode()
            self._records.append(_Record(ZIP_RECORD.encode(), len(raw), raw))
        at = 0
        for record in self._records:
            at = record.place(at)
        self._directory = at
        self.slots: Mapping[str, tuple[int, int]] = {
            record.key: (record.data, record.size) for record in self._records if record.content is None
        }
        self.size = at + len(self._tail({}))

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes outside the tensors, as (offset, bytes) in order."""
        start, piece = 0, b""
        crcs: dict[bytes, int] = {}
        for record in self._records:
            content = "".join(recipe).encode() if record.name == ZIP_RECORD.encode() else record.content
            crc = checksums[record.key] if content is None else zlib.crc32(content)
            crcs[record.name] = crc
            piece += record.local(crc) + (content or b"")
            if content is None:
                yield start, piece
                start, piece = record.data + record.size, b""
        yield start, piece + self._tail(crcs)

    def _tail(self, crcs: Mapping[bytes, int]) -> bytes:
        directory = b"".join(record.central(crcs.get(record.name, 0)) for record in self._records)
        return directory + _end(len(self._records), len(directory), self._directory)


class ZipWriter:
    """Writes ``.pth`` files."""

    name = "pth"
    sharding = IndexedShards("pytorch_model", ".bin")
    suffixes = (".pth", ".pt", ".bin", ".ckpt")
    carries = True
    shares = True
    most = TENSORS
    dtypes = frozenset(d.name for d in DTYPES.values() if d.kind != "bits" and d.bits != 6 and not d.block)

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> ZipLayout:
        """Return the layout of a file; ``metadata`` is ignored, since ``.pth`` files store it only in the recipe."""
        owners = [t for t in tensors if not t.alias_of]
        number = {tensor.key: str(i) for i, tensor in enumerate(owners)}
        names = {t.key: number[t.alias_of or t.key] for t in tensors}
        layout = ZipLayout(state_dict_pickle(tensors, names, beside or ExtraEntries()), owners, recipe)
        layout.slots = {t.key: layout.slots[t.alias_of or t.key] for t in tensors}
        return layout
