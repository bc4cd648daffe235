"""TensorFlow's files: as TensorFlow wrote them, and an index written by hand that says whatever a test wants."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import ckptsurgeon as cs
from ckptsurgeon.storage.crc32c import crc32c

GOLDEN = Path(__file__).parents[2] / "fixtures/golden/tensorflow"
BEST = "best_dev-1000"

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
HEADER = b"\x08\x01\x1a\x02\x08\x01"
"""One data file, little-endian, version 1."""
FLOAT = 1

Entries = Iterable[tuple[bytes, bytes]]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def entry(
    shape: Sequence[int], size: int, *, offset: int = 0, crc: int = 0, dtype: int = FLOAT, shard: int = 0
) -> bytes:
    """A BundleEntryProto."""
    sizes = b"".join(field(2, field(1, one)) for one in shape)
    numbers = field(3, shard) + field(4, offset) + field(5, size)
    return field(1, dtype) + field(2, sizes) + numbers + b"\x35" + struct.pack("<I", masked(crc))


def block(entries: Entries, restarts: Sequence[int] = (0,)) -> bytes:
    """A block without shared prefixes."""
    body = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
    return body + b"".join(struct.pack("<I", at) for at in restarts) + struct.pack("<I", len(restarts))


def sealed(content: bytes, kind: int = 0) -> bytes:
    """A block with its trailer."""
    return content + bytes([kind]) + struct.pack("<I", masked(crc32c(content + bytes([kind]))))


def handle(offset: int, size: int) -> bytes:
    return varint(offset) + varint(size)


def table(blocks: Sequence[tuple[bytes, bytes]], kind: int = 0, index: bytes | None = None) -> bytes:
    """A table of blocks, each with the last key in it; ``index`` in place of the index block that there would be."""
    raw, handles = b"", []
    for last, content in blocks:
        handles.append((last, handle(len(raw), len(content))))
        raw += sealed(content, kind)
    meta, content = block([]), block(handles) if index is None else index
    footer = handle(len(raw), len(meta)) + handle(len(raw) + len(meta) + 5, len(content))
    return raw + sealed(meta) + sealed(content) + footer.ljust(40, b"\0") + MAGIC


def index_of(entries: Mapping[str, bytes], header: bytes = HEADER) -> bytes:
    """An index of one block."""
    rows = [(b"", header), *((name.encode(), value) for name, value in sorted(entries.items()))]
    return table([(rows[-1][0], block(rows))])


def write(prefix: str, tensors: Mapping[str, np.ndarray], header: bytes = HEADER) -> None:
    """A checkpoint of one data file."""
    data, entries = b"", {}
    for name, array in tensors.items():
        raw = array.tobytes()
        entries[name] = entry(array.shape, len(raw), offset=len(data), crc=crc32c(raw))
        data += raw
    Path(f"{prefix}.index").write_bytes(index_of(entries, header))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def read_all(path: str | Path) -> None:
    with cs.open_checkpoint(path) as checkpoint:
        for key in checkpoint:
            checkpoint.tensor(key)


def refused(path: str | Path, kind: type[Exception] = cs.FormatError) -> str:
    with pytest.raises(kind) as error:
        read_all(path)
    return " ".join(str(error.value).split())
