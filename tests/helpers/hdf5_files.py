"""HDF5 files made block by block, sound ones and others; only what h5py writes is in ``fixtures/golden/hdf5``."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = [
    "FLOAT32", "GOLDEN", "NONE", "Blocks", "chunked", "contiguous", "deflated", "filters", "link", "message", "place",
    "resealed", "space",
]  # fmt: skip

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "hdf5"
NONE = (1 << 64) - 1
"""The address that stands for none."""
FLOAT32 = struct.pack("<B3sI2H4BI", 0x11, b"\x20\x1f\0", 4, 0, 32, 23, 8, 0, 23, 127)
SPACE, LINKS, TYPE, FILL, LINK, EXTERNAL, LAYOUT, FILTERS, CONTINUATION, TABLE = 1, 2, 3, 5, 6, 7, 8, 11, 16, 17


class Blocks:
    """Blocks of a file behind a superblock of version 0; ``add`` returns the address of a block."""

    def __init__(self) -> None:
        self.data = bytearray(96)

    @property
    def next(self) -> int:
        """The address of the next block."""
        return len(self.data)

    def add(self, block: bytes) -> int:
        address = len(self.data)
        self.data += block + bytes(-len(block) % 8)
        return address

    def object(self, *messages: bytes, number: int | None = None) -> int:
        """Add an object header of version 1."""
        body = b"".join(messages)
        return self.add(struct.pack("<BxHII4x", 1, len(messages) if number is None else number, 1, len(body)) + body)

    def group(self, links: Mapping[str, int] | Sequence[tuple[str | bytes, int]]) -> int:
        """Add a group with its links in its header."""
        pairs = links.items() if isinstance(links, Mapping) else links
        return self.object(message(LINKS, struct.pack("<BB2Q", 0, 0, NONE, NONE)), *(link(*one) for one in pairs))

    def table(self, links: Sequence[tuple[str, int]], tree: int | None = None, heap: int | None = None) -> int:
        """Add a group of the older kind: a heap with names, a node of symbols, and a B-tree."""
        names, places = bytearray(8), []
        for name, _ in links:
            places.append(len(names))
            names += name.encode() + bytes(8 - len(name) % 8)
        data = self.add(bytes(names))
        own = self.add(b"HEAP" + struct.pack("<4x3Q", len(names), 1, data))
        symbols = b"".join(struct.pack("<2QI20x", at, to, 0) for at, (_, to) in zip(places, links, strict=True))
        node = self.add(b"SNOD" + struct.pack("<BxH", 1, len(links)) + symbols)
        end = struct.pack("<Q", places[-1])
        tree = self.tree(0, 0, [(bytes(8), node)], last=end) if tree is None else tree
        return self.object(message(TABLE, struct.pack("<2Q", tree, own if heap is None else heap)))

    def tree(
        self, kind: int, level: int, children: Sequence[tuple[bytes, int]], number: int | None = None, last: bytes = b""
    ) -> int:
        """Add a node of a B-tree of version 1: (key, child), and a last key of zeros."""
        said = len(children) if number is None else number
        last = last or (bytes(len(children[0][0])) if children else bytes(8))
        pairs = b"".join(key + struct.pack("<Q", child) for key, child in children)
        return self.add(b"TREE" + struct.pack("<BBH2Q", kind, level, said, NONE, NONE) + pairs + last)

    def dataset(self, *more: bytes, shape: Sequence[int] = (2, 3), kind: bytes = FLOAT32) -> int:
        """Add a dataset; ``more`` has its messages besides type and shape."""
        return self.object(message(SPACE, space(shape)), message(TYPE, kind), *more)

    def floats(self, number: int = 6) -> int:
        """Add a dataset of ones that is stored contiguously."""
        address = self.add(struct.pack("<f", 1) * number)
        return self.dataset(contiguous(address, 4 * number), shape=(number,))

    def file(self, root: int, end: int | None = None, driver: int = NONE) -> bytes:
        """Return the whole file."""
        head = b"\x89HDF\r\n\x1a\n" + struct.pack("<8B2HI", 0, 0, 0, 0, 0, 8, 8, 0, 4, 16, 0)
        end = len(self.data) if end is None else end
        self.data[:96] = head + struct.pack("<4Q2Q24x", 0, NONE, end, driver, 0, root)
        return bytes(self.data)


def message(kind: int, data: bytes, flags: int = 0) -> bytes:
    data += bytes(-len(data) % 8)
    return struct.pack("<2HB3x", kind, len(data), flags) + data


def link(name: str | bytes, address: int) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return message(LINK, struct.pack("<BBH", 1, 1, len(raw)) + raw + struct.pack("<Q", address))


def space(shape: Sequence[int]) -> bytes:
    return struct.pack(f"<BBB5x{len(shape)}Q", 1, len(shape), 0, *shape)


def contiguous(address: int, size: int) -> bytes:
    return message(LAYOUT, struct.pack("<BB2Q", 3, 1, address, size))


def chunked(tree: int, chunk: Sequence[int], element: int = 4) -> bytes:
    return message(LAYOUT, struct.pack(f"<BBBQ{len(chunk) + 1}I", 3, 2, len(chunk) + 1, tree, *chunk, element))


def filters(*numbers: int) -> bytes:
    return message(
        FILTERS, struct.pack("<BB", 2, len(numbers)) + b"".join(struct.pack("<3H", one, 0, 0) for one in numbers)
    )


def place(size: int, *offsets: int, mask: int = 0) -> bytes:
    """The key of a chunk in a B-tree."""
    return struct.pack(f"<2I{len(offsets) + 1}Q", size, mask, *offsets, 0)


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


def resealed(data: bytes, magic: bytes, change: tuple[int, bytes], nth: int = 0) -> bytes:
    """A file with bytes changed in the block that begins with ``magic``, and its checksum made anew."""
    from ckptsurgeon.formats.hdf5.checksums import lookup3

    begin = -1
    for _ in range(nth + 1):
        begin = data.index(magic, begin + 1)
    end = next(
        at
        for at in range(begin + 8, len(data) - 3)
        if lookup3(data[begin:at]) == int.from_bytes(data[at : at + 4], "little")
    )
    block = bytearray(data[begin:end])
    block[change[0] : change[0] + len(change[1])] = change[1]
    return data[:begin] + bytes(block) + struct.pack("<I", lookup3(bytes(block))) + data[end + 4 :]
