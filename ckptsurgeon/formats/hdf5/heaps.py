"""Reads objects from heaps: the local heap of a group, the global heap, fractal heaps (specification, III.D to G)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ...errors import FormatError
from .blocks import BlockReader, Fields, malformed

__all__ = ["FractalHeap", "GlobalHeap", "local_heap", "text_in"]


_NO_FREE = 1
"""The offset that means "no free space" in a local heap."""


def local_heap(blocks: BlockReader, address: int) -> bytes:
    """Return the data of a local heap: the names of a group's links; raises FormatError if the heap is not valid."""
    what = "a local heap"
    fields = blocks.block(address, 8 + 2 * blocks.length_size + blocks.offset_size, what, b"HEAP")
    if fields.number(1):
        raise malformed(what, "has an unknown version")
    fields.take(3)
    size, free = blocks.length(fields), blocks.length(fields)
    if free != _NO_FREE and free + 2 * blocks.length_size > size:
        raise malformed(what, "has free space outside its data")
    return blocks.block(blocks.needed(fields, what), size, what).data


def text_in(heap: bytes, at: int) -> bytes:
    """Return the text at the offset ``at`` of a local heap, without the zero byte at its end.

    Raises FormatError if the offset is outside the heap, or no zero byte follows.
    """
    end = heap.find(b"\0", at)
    if at >= len(heap) or end < 0:
        raise malformed("a local heap", "lacks a name")
    return heap[at:end]


class GlobalHeap:
    """Reads texts of variable length, which are stored in collections anywhere in the file."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks = blocks
        self._collections: dict[int, dict[int, bytes]] = {}

    def object(self, address: int, index: int, nbytes: int) -> bytes:
        """Return the first ``nbytes`` bytes of an object; raises FormatError if it is missing or shorter.

        ``address`` is the address of a collection, ``index`` the index of the object in the collection.
        """
        if address not in self._collections:
            self._collections[address] = dict(self._objects(address))
        found = self._collections[address].get(index)
        if found is None or len(found) < nbytes:
            raise malformed("a text", "is not in the global heap")
        return found[:nbytes]

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        what, width = "a collection of the global heap", self._blocks.length_size
        head = Fields(self._blocks.peek(address, 8 + width, what), what, 8)
        fields = self._blocks.block(address, head.number(width), what, b"GCOL")
        fields.at = 16  # the head of a collection, and of an object, is padded to 16 bytes
        while fields.left >= 16:
            index = fields.number(2)
            fields.take(6)
            nbytes = fields.number(width)
            fields.take(8 - width)
            if not index:
                return
            yield index, fields.take(nbytes)
            fields.take(min(-nbytes % 8, fields.left))


class _Block(NamedTuple):
    """A block of a fractal heap: its offset in the heap, the size of the block, and its address."""

    offset: int
    size: int
    address: int


class FractalHeap:
    """Reads the objects of a fractal heap, which has the links of a large group.

    Raises FormatError for a heap that is not valid, or that is stored through filters.
    """

    def __init__(self, blocks: BlockReader, address: int) -> None:
        self._blocks = blocks
        what = self._what = "a fractal heap"
        nbytes = 22 + 12 * blocks.length_size + 3 * blocks.offset_size + 4
        fields = blocks.checked(address, nbytes, what, b"FRHP")
        version, _, filters = fields.number(1), fields.number(2), fields.number(2)
        self._has_checksums, longest = bool(fields.number(1) & 2), fields.number(4)
        if version or filters:
            raise malformed(what, "has an unknown version, or filters")
        fields.take(10 * blocks.length_size + 2 * blocks.offset_size)
        self._columns = fields.number(2)
        self._start, self._largest = blocks.length(fields), blocks.length(fields)
        self._bits, _ = fields.number(2), fields.number(2)
        root, rows = blocks.address(fields), fields.number(2)
        if not (self._columns and self._start and self._largest >= self._start and self._bits <= 64):
            raise malformed(what, "has impossible sizes")
        self._wide = (self._bits + 7) // 8
        self._narrow = min((self._largest.bit_length() + 6) // 8, (longest.bit_length() + 7) // 8)
        self._direct = sorted(self._found(root, rows)) if root is not None else []
        self._offsets = [one.offset for one in self._direct]
        self._read: dict[int, bytes] = {}

    def _row_size(self, row: int) -> int:
        return self._start << max(0, row - 1)

    def _found(self, root: int, rows: int) -> Iterator[_Block]:
        """Yield the direct blocks of the heap, which contain its objects; ``root`` is the address of the root block.

        ``rows`` is the number of rows of the root block, 0 if it is a direct block itself. Raises FormatError if a
        block is not valid.
        """
        if not rows:
            yield _Block(0, self._start, root)
            return
        waiting = [(root, rows, 0)]
        direct = (self._largest // self._start).bit_length() + 1
        while waiting:
            address, rows, offset = waiting.pop()
            if rows > self._bits:
                raise malformed(self._what, "has more rows than it can have")
            number = rows * self._columns
            begin = 5 + self._blocks.offset_size + self._wide
            nbytes = begin + number * self._blocks.offset_size + 4
            fields = self._blocks.checked(address, nbytes, self._what, b"FHIB")
            fields.at = begin
            for at in range(number):
                size, child = self._row_size(at // self._columns), self._blocks.address(fields)
                if child is not None and at // self._columns < direct:
                    yield _Block(offset, size, child)
                elif child is not None:
                    waiting.append((child, self._rows_of(size), offset))
                offset += size

    def _rows_of(self, size: int) -> int:
        """Return the number of rows of an indirect block that spans ``size`` bytes of the heap."""
        return (size // (self._start * self._columns)).bit_length()

    def object(self, place: bytes) -> bytes:
        """Return the object with the ID ``place``; raises FormatError if it is not in a direct block of the heap."""
        fields = Fields(place, "the place of an object in a heap")
        if kind := fields.number(1) & 0xF0:
            raise FormatError(f"a link is stored in a way that is not supported (heap ID {kind:#x}).", rule="hdf5 heap")
        at, nbytes = fields.number(self._wide), fields.number(self._narrow)
        number = bisect_right(self._offsets, at) - 1
        if number < 0 or at + nbytes > self._direct[number].offset + self._direct[number].size:
            raise malformed("the place of an object in a heap", "is outside the heap")
        block = self._direct[number]
        return self._data(block)[at - block.offset : at - block.offset + nbytes]

    def _data(self, block: _Block) -> bytes:
        if block.address not in self._read:
            fields = self._blocks.block(block.address, block.size, self._what, b"FHDB")
            if self._has_checksums:
                self._check(fields)
            self._read[block.address] = fields.data
        return self._read[block.address]

    def _check(self, fields: Fields) -> None:
        """Raise FormatError if the checksum of a direct block is wrong.

        The checksum is a field of the block; it is computed as if this field were zero.
        """
        at = 5 + self._blocks.offset_size + self._wide
        data = fields.data
        self._blocks.check(data[:at] + b"\0\0\0\0" + data[at + 4 :] + data[at : at + 4], self._what)
