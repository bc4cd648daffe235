"""Finds the chunks of a dataset through the index of its layout (specification, III.A and VII).

An index has the address of each chunk, and if filters were applied, its stored size. Files that were written for HDF5
1.10 or newer (``libver="latest"``) have five kinds of index: a single chunk, implicit, fixed array, extensible array,
and for datasets that may grow in several dimensions a B-tree of version 2. All other files have B-trees of version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from .blocks import BlockReader, Fields, cut_short, malformed
from .btrees import CHUNKS, leaves_of, records_of
from .chunk_arrays import Found, StoredChunk, element_in, in_extensible_array, in_fixed_array
from .layouts import BTREE, StoredLayout, chunk_bytes

__all__ = ["chunks_of"]

_SINGLE, _IMPLICIT, _FIXED, _EXTENSIBLE = 1, 2, 3, 4
_TREE_RECORDS = 10
_Most = Sequence[int | None]


def _grid_of(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """Return the number of chunks in each dimension."""
    return tuple(-(-size // step) for size, step in zip(shape, chunk, strict=True))


def chunks_of(
    blocks: BlockReader, layout: StoredLayout, shape: Sequence[int], most: _Most, *, filtered: bool
) -> dict[tuple[int, ...], StoredChunk]:
    """Return the stored chunks of a dataset by their indices in the grid of chunks.

    ``most`` has the largest size of each dimension, None if it is unlimited. ``filtered`` is true if filters were
    applied to the chunks. Raises FormatError if an index is not valid, if a chunk occurs twice or is outside the file.
    """
    grid, found = _grid_of(shape, layout.chunk), dict[tuple[int, ...], StoredChunk]()
    if layout.address is None or not prod(grid):
        return found
    whole = chunk_bytes(layout)
    for place, chunk in _listed(blocks, layout, layout.address, grid, most, filtered):
        if any(at >= number for at, number in zip(place, grid, strict=True)) or place in found:
            raise malformed("a chunk", "is outside its dataset, or occurs twice")
        unfiltered = not filtered or (layout.whole_edges and _is_edge(place, shape, layout.chunk))
        if unfiltered and chunk.size != whole:
            raise malformed("a chunk", f"has {chunk.size:,} bytes, not {whole:,}")
        if chunk.address + chunk.size > blocks.size:
            raise cut_short("a chunk")
        found[place] = chunk._replace(mask=-1) if unfiltered else chunk
        blocks.spend_chunks(1)
    return found


def _is_edge(place: Sequence[int], shape: Sequence[int], chunk: Sequence[int]) -> bool:
    return any((at + 1) * step > size for at, size, step in zip(place, shape, chunk, strict=True))


def _listed(
    blocks: BlockReader, layout: StoredLayout, address: int, grid: tuple[int, ...], most: _Most, filtered: bool
) -> Found:
    whole = chunk_bytes(layout)
    if layout.found_by == BTREE:
        return _of_tree(blocks, layout, address)
    if layout.found_by == _SINGLE:
        if prod(grid) > 1:
            raise malformed("a dataset", "has a single chunk, which is smaller than the dataset")
        size = layout.size if filtered and layout.size else whole
        return iter([((0,) * len(grid), StoredChunk(address, size, layout.mask))])
    if layout.found_by not in (_IMPLICIT, _FIXED, _EXTENSIBLE):
        return _of_records(blocks, address, len(grid), whole)
    blocks.spend_chunks(prod(grid))
    sides = [None if size is None else -(-size // step) for size, step in zip(most, layout.chunk, strict=True)]
    number_of = _numbering(sides, grid)
    wanted = sorted((number_of(place), place) for place in product(*map(range, grid)))
    if layout.found_by == _IMPLICIT:
        return ((place, StoredChunk(address + number * whole, whole)) for number, place in wanted)
    listed = in_fixed_array if layout.found_by == _FIXED else in_extensible_array
    return listed(blocks, address, wanted, whole)


def _numbering(sides: Sequence[int | None], grid: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """Return a function that maps a chunk's place in the grid of chunks to its index in an array.

    ``sides`` has the largest number of chunks in each dimension. The unlimited dimension varies slowest.
    """
    order = sorted(range(len(sides)), key=lambda dim: (sides[dim] is not None, dim))
    sizes = [grid[dim] if sides[dim] is None else sides[dim] for dim in order]

    def number(place: Sequence[int]) -> int:
        found = 0
        for dim, size in zip(order, sizes, strict=True):
            found = found * (size or 0) + place[dim]
        return found

    return number


def _of_tree(blocks: BlockReader, layout: StoredLayout, address: int) -> Found:
    """Yield the chunks in a B-tree of version 1, which stores the index of a chunk's first element in each dimension.

    Raises FormatError if the tree is not valid.
    """
    for leaf in leaves_of(blocks, address, CHUNKS, 8 + 8 * (len(layout.chunk) + 1)):
        fields = Fields(leaf.key, "the place of a chunk")
        size, mask = fields.number(4), fields.number(4)
        offsets = [fields.number(8) for _ in layout.chunk]
        if any(at % step for at, step in zip(offsets, layout.chunk, strict=True)):
            raise malformed("a chunk", "does not begin at a multiple of its size")
        place = tuple(at // step for at, step in zip(offsets, layout.chunk, strict=True))
        yield place, StoredChunk(leaf.child, size, mask)


def _of_records(blocks: BlockReader, address: int, rank: int, whole: int) -> Found:
    """Yield the chunks in a B-tree of version 2, which stores the place of a chunk in the grid of chunks.

    ``rank`` is the number of dimensions, ``whole`` the size in bytes of a chunk without filters. Raises FormatError if
    the tree is not valid.
    """
    records, found = records_of(blocks, address, _TREE_RECORDS)
    filtered = records.kind > _TREE_RECORDS
    width = records.size - blocks.offset_size - 8 * rank - 4 if filtered else 0
    if not (1 <= width <= 8 if filtered else records.size == blocks.offset_size + 8 * rank):
        raise malformed("an index of chunks", "has records of another size")
    for record in found:
        fields = Fields(record, "the place of a chunk")
        chunk = element_in(blocks, fields, width, whole)
        place = tuple(fields.number(8) for _ in range(rank))
        if chunk is not None:
            yield place, chunk
