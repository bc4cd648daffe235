"""Finds chunks in arrays: fixed arrays, and extensible arrays (specification, VII.C and VII.D).

The element of a chunk in an array is its address, and if filters were applied, its stored size. Parts without chunks
are not stored. A long run of elements is divided into pages, each with a checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .blocks import BlockReader, Fields, malformed

__all__ = ["Found", "Place", "StoredChunk", "element_in", "in_extensible_array", "in_fixed_array"]


class StoredChunk(NamedTuple):
    """A chunk: its address, its stored size in bytes, and a mask with a bit for each filter that was not applied."""

    address: int
    size: int
    mask: int = 0


Place = tuple[int, ...]
"""The indices of a chunk in the grid of chunks."""
Found = Iterator[tuple[Place, StoredChunk]]


def element_in(blocks: BlockReader, fields: Fields, width: int, whole: int) -> StoredChunk | None:
    """Return the chunk in the next element of ``fields``; None if the chunk is not stored.

    The size of the chunk is stored in ``width`` bytes. If ``width`` is 0, the size is ``whole``, the size of a chunk
    without filters.
    """
    address = blocks.address(fields)
    size, mask = (fields.number(width), fields.number(4)) if width else (whole, 0)
    return None if address is None else StoredChunk(address, size, mask)


class _Elements(NamedTuple):
    """How the elements of an array are stored: each has ``nbytes`` bytes, ``width`` of them for the size of its chunk.

    If ``width`` is 0, no sizes are stored: each chunk has ``whole`` bytes.
    """

    nbytes: int
    width: int
    whole: int


def _elements(blocks: BlockReader, client: int, nbytes: int, whole: int) -> _Elements:
    width = nbytes - blocks.offset_size - 4 if client else 0
    if client > 1 or not (1 <= width <= 8 if client else nbytes == blocks.offset_size):
        raise malformed("an array of chunks", "has elements of an unknown kind or size")
    return _Elements(nbytes, width, whole)


class _Bits(NamedTuple):
    """A bitmap: the bits of ``data`` from the bit ``begin`` on; in each byte, the highest bit comes first."""

    data: bytes
    begin: int = 0

    def at(self, number: int) -> bool:
        """Return whether a bit is set."""
        return bool(self.data[(self.begin + number) // 8] & 0x80 >> (self.begin + number) % 8)


class _Wanted:
    """The chunks that are looked up, as (index in the array, place in the grid) in ascending order.

    Each call of ``below`` returns the next chunks, up to a given index.
    """

    def __init__(self, wanted: Sequence[tuple[int, Place]]) -> None:
        self._wanted, self._at = wanted, 0

    def below(self, end: int) -> list[tuple[int, Place]]:
        """Return the chunks with an index below ``end`` that were not returned yet."""
        begin = self._at
        while self._at < len(self._wanted) and self._wanted[self._at][0] < end:
            self._at += 1
        return list(self._wanted[begin : self._at])

    @property
    def next(self) -> int | None:
        """The index of the next chunk to return; None if all were returned."""
        return self._wanted[self._at][0] if self._at < len(self._wanted) else None


def _picked(
    blocks: BlockReader, elements: _Elements, data: bytes, first: int, wanted: Iterable[tuple[int, Place]]
) -> Found:
    """Yield those chunks of ``wanted`` that are stored; all of them have an element in ``data``, a run of elements.

    ``first`` is the index in the array of the first element in ``data``.
    """
    for number, place in wanted:
        fields = Fields(data, "an array of chunks", (number - first) * elements.nbytes)
        chunk = element_in(blocks, fields, elements.width, elements.whole)
        if chunk is not None:
            yield place, chunk


def _in_pages(
    blocks: BlockReader,
    elements: _Elements,
    address: int,
    first: int,
    number: int,
    page: int,
    used: _Bits,
    wanted: _Wanted,
) -> Found:
    """Yield the wanted chunks in the pages of a block; the first page is at ``address``.

    The block has ``number`` elements, beginning with element ``first`` of the array; each page but the last has
    ``page`` elements. ``used`` has a bit for each page, which is set if the page was written.
    """
    what = "a page of an array of chunks"
    for at in range(-(-number // page)):
        size = min(page, number - at * page)
        some = wanted.below(first + at * page + size)
        if some and used.at(at):
            place = address + at * (page * elements.nbytes + 4)
            data = blocks.checked(place, size * elements.nbytes + 4, what).data
            yield from _picked(blocks, elements, data, first + at * page, some)


def in_fixed_array(blocks: BlockReader, address: int, places: Sequence[tuple[int, Place]], whole: int) -> Found:
    """Yield the chunks in a fixed array that are stored, each with its place in the grid.

    ``places`` has (index in the array, place in the grid) of each chunk, in ascending order; ``whole`` is the size in
    bytes of a chunk without filters. Raises FormatError if the array is not valid.
    """
    what, wanted = "an array of chunks", _Wanted(places)
    fields = blocks.checked(address, 12 + blocks.length_size + blocks.offset_size, what, b"FAHD")
    version, client, nbytes, bits = (fields.number(1) for _ in range(4))
    number, block = blocks.length(fields), blocks.address(fields)
    elements, page = _elements(blocks, client, nbytes, whole), 1 << min(bits, 63)
    if version or places[-1][0] >= number:
        raise malformed(what, "has an unknown version, or fewer elements than chunks")
    if block is None:
        return
    begin = 6 + blocks.offset_size
    if number <= page:
        data = blocks.checked(block, begin + number * nbytes + 4, what, b"FADB").data
        yield from _picked(blocks, elements, data[begin:], 0, wanted.below(number))
        return
    pages = -(-number // page)
    head = blocks.checked(block, begin + -(-pages // 8) + 4, what, b"FADB")
    address = block + len(head.data) + 4
    yield from _in_pages(blocks, elements, address, 0, number, page, _Bits(head.data[begin:]), wanted)


class _Extensible(NamedTuple):
    """The header of an extensible array.

    ``direct``, ``smallest`` and ``page`` are the numbers of elements in the index block, in the smallest block and in a
    page. ``supers`` is the number of super blocks. If a super block has fewer than ``pointers`` blocks, the index block
    has the addresses of these blocks, otherwise the address of the super block. ``wide`` is the number of bytes that
    store a block's offset in the array.
    """

    elements: _Elements
    direct: int
    smallest: int
    pointers: int
    page: int
    wide: int
    supers: int

    def blocks_in(self, number: int) -> tuple[int, int]:
        """Return how many blocks the super block ``number`` has, and how many elements each block has."""
        return 1 << number // 2, self.smallest << (number + 1) // 2


def in_extensible_array(blocks: BlockReader, address: int, places: Sequence[tuple[int, Place]], whole: int) -> Found:
    """Yield the chunks in an extensible array that are stored, each with its place in the grid.

    An extensible array has an index block, blocks of elements, and super blocks, which have the addresses of blocks.
    ``places`` has (index in the array, place in the grid) of each chunk, in ascending order; ``whole`` is the size in
    bytes of a chunk without filters. Raises FormatError if the array is not valid.
    """
    what, wanted = "an array of chunks", _Wanted(places)
    fields = blocks.checked(address, 16 + 6 * blocks.length_size + blocks.offset_size, what, b"EAHD")
    version, client, nbytes, bits, direct, smallest, pointers, page = (fields.number(1) for _ in range(8))
    fields.take(6 * blocks.length_size)
    index = blocks.address(fields)
    if version or not 1 <= bits <= 64 or not _is_power(smallest) or not _is_power(pointers) or page > 63:
        raise malformed(what, "has an unknown version, or impossible sizes")
    supers = 1 + bits - (smallest.bit_length() - 1)
    array = _Extensible(
        _elements(blocks, client, nbytes, whole), direct, smallest, pointers, 1 << page, (bits + 7) // 8, supers
    )
    if index is not None:
        yield from _in_index_block(blocks, array, index, wanted)


def _is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _in_index_block(blocks: BlockReader, array: _Extensible, address: int, wanted: _Wanted) -> Found:
    inner = min(2 * (array.pointers.bit_length() - 1), array.supers)
    own = sum(array.blocks_in(number)[0] for number in range(inner))
    begin, what = 6 + blocks.offset_size, "an array of chunks"
    table = begin + array.direct * array.elements.nbytes
    nbytes = table + (own + array.supers - inner) * blocks.offset_size + 4
    fields = blocks.checked(address, nbytes, what, b"EAIB")
    yield from _picked(blocks, array.elements, fields.data[begin:table], 0, wanted.below(array.direct))
    fields.at, first = table, array.direct
    for number in range(array.supers):
        many, size = array.blocks_in(number)
        if number < inner:
            found = [blocks.address(fields) for _ in range(many)]
            yield from _in_blocks(blocks, array, number, found, first, [None] * many, wanted)
        else:
            place = blocks.address(fields)
            if place is not None and (wanted.next or 0) < first + many * size:
                yield from _in_super_block(blocks, array, number, place, first, wanted)
        first += many * size
        wanted.below(first)
        if wanted.next is None:
            return


def _in_super_block(
    blocks: BlockReader, array: _Extensible, number: int, address: int, first: int, wanted: _Wanted
) -> Found:
    many, size = array.blocks_in(number)
    pages = size // array.page if size > array.page else 0
    width, begin = -(-pages // 8), 6 + blocks.offset_size + array.wide
    nbytes = begin + many * (width + blocks.offset_size) + 4
    fields = blocks.checked(address, nbytes, "an array of chunks", b"EASB")
    fields.at = begin
    bits = fields.take(many * width)
    used = [_Bits(bits, pages * at) if pages else None for at in range(many)]
    found = [blocks.address(fields) for _ in range(many)]
    yield from _in_blocks(blocks, array, number, found, first, used, wanted)


def _in_blocks(
    blocks: BlockReader, array: _Extensible, number: int, found: Sequence[int | None], first: int,
    used: Sequence[_Bits | None], wanted: _Wanted,
) -> Found:  # fmt: skip
    """Yield the wanted chunks in the blocks of the super block ``number``.

    ``found`` has the address of each block (None: not stored). ``first`` is the index in the array of the first element
    of these blocks. ``used`` has, for each block, a bit for each of its pages, which is set if the page was written;
    None if the block has no pages. Raises FormatError if the blocks are not valid.
    """
    what, (_, size) = "an array of chunks", array.blocks_in(number)
    begin = 6 + blocks.offset_size + array.wide
    for address, pages in zip(found, used, strict=True):
        if address is None or wanted.next is None or wanted.next >= first + size:
            wanted.below(first + size)
        elif size > array.page and pages:
            blocks.checked(address, begin + 4, what, b"EADB")
            yield from _in_pages(blocks, array.elements, address + begin + 4, first, size, array.page, pages, wanted)
        elif size > array.page:
            raise malformed(what, "has pages in its index block")
        else:
            data = blocks.checked(address, begin + size * array.elements.nbytes + 4, what, b"EADB").data
            yield from _picked(blocks, array.elements, data[begin:], first, wanted.below(first + size))
        first += size
