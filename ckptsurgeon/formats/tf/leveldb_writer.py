"""Writes LevelDB's sorted tables, without compression and without shared prefixes.

``leveldb.py``, which reads such tables, describes their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...storage.crc32c import crc32c, masked
from ..base.protobuf import varint_bytes
from .leveldb import FOOTER, MAGIC

__all__ = ["table"]

_BLOCK = 4096
"""Bytes after which a block ends: LevelDB's default (``block_size``)."""
_PLAIN = b"\0"

Entry = tuple[bytes, bytes]


def table(entries: Iterable[Entry]) -> bytes:
    """Return the bytes of a table with these (key, value) pairs, which must be sorted by key."""
    out, handles = bytearray(), []
    for last, content in _blocks(entries):
        handles.append((last, _handle(len(out), content)))
        out += _sealed(content)
    others, index = _block([]), _block(handles)
    footer = _handle(len(out), others)
    out += _sealed(others)
    footer += _handle(len(out), index)
    return bytes(out + _sealed(index) + footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)


def _blocks(entries: Iterable[Entry]) -> Iterable[Entry]:
    """Yield (last key, bytes) of each block."""
    rows: list[Entry] = []
    size = 0
    for key, value in entries:
        rows.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK:
            yield key, _block(rows)
            rows, size = [], 0
    if rows:
        yield rows[-1][0], _block(rows)


def _block(rows: Sequence[Entry]) -> bytes:
    """Return the bytes of a block; every entry is a restart point, so its whole key is stored."""
    out, restarts = bytearray(), bytearray()
    for key, value in rows:
        restarts += len(out).to_bytes(4, "little")
        out += _PLAIN + varint_bytes(len(key)) + varint_bytes(len(value)) + key + value
    points = restarts or bytes(4)
    return bytes(out + points + (len(points) // 4).to_bytes(4, "little"))


def _handle(offset: int, content: bytes) -> bytes:
    return varint_bytes(offset) + varint_bytes(len(content))


def _sealed(content: bytes) -> bytes:
    """Return a block followed by its compression byte (0: none) and its checksum."""
    return content + _PLAIN + masked(crc32c(content + _PLAIN)).to_bytes(4, "little")
