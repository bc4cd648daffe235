"""Reads how the values of a dataset are stored: layout, filters and fill value (specification, IV.A.2)."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...errors import FormatError
from ..base import limits
from .blocks import BlockReader, Fields, malformed
from .objects import FILL_OLD, HeaderMessage

__all__ = [
    "BTREE",
    "DEFLATE",
    "FLETCHER",
    "SHUFFLE",
    "Filter",
    "StoredLayout",
    "chunk_bytes",
    "fill_in",
    "filters_in",
    "layout_in",
]

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = 0, 1, 2, 3
BTREE = 0
"""The only kind of index in layouts of version 3, which have no number for it; in version 4, kinds begin at 1."""
_SINGLE, _FIXED, _EXTENSIBLE, _TREE = 1, 3, 4, 5
_PARAMETERS = {_FIXED: 1, _EXTENSIBLE: 5, _TREE: 6}
"""{kind of index: bytes of its parameters in the layout message}. The index itself repeats these parameters."""
DEFLATE, SHUFFLE, FLETCHER = 1, 2, 3
_FILTERS = {4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf", 32001: "blosc", 32008: "bitshuffle", 32015: "zstd"}
_WHAT = "a layout"


class StoredLayout(NamedTuple):
    """How the values of a dataset are stored: ``kind`` is compact, contiguous, chunked or virtual.

    ``address`` is None if nothing is stored. For chunked values, ``chunk`` is the shape of a chunk, ``element`` the
    size of an element in bytes, and ``found_by`` the kind of index that finds the chunks. ``size`` is the size in bytes
    of contiguous values, or of the only chunk; ``mask`` has a bit for each filter that was not applied to this chunk.
    If ``whole_edges`` is true, filters are not applied to chunks that reach beyond the dataset.
    """

    kind: str
    address: int | None
    size: int = 0
    chunk: tuple[int, ...] = ()
    element: int = 0
    found_by: int = BTREE
    mask: int = 0
    whole_edges: bool = False


class Filter(NamedTuple):
    """A filter that was applied to chunks: its id, and for ``SHUFFLE`` the size of an element in bytes."""

    number: int
    width: int = 0


def layout_in(blocks: BlockReader, message: HeaderMessage) -> StoredLayout:
    """Return the layout in a layout message; raises FormatError if it is not valid, or of an unknown version."""
    fields = message.fields
    version, kind = fields.number(1), fields.number(1)
    if version not in (3, 4, 5):
        raise FormatError(
            f"a dataset has a layout of version {version}, which is not supported.",
            hint="Write the file again, with h5repack of HDF5 1.8 or newer.",
            rule="hdf5 version",
        )
    if kind == _COMPACT:
        size = fields.number(2)
        fields.take(size)
        return StoredLayout("compact", message.address + fields.at - size, size)
    if kind == _CONTIGUOUS:
        return StoredLayout("contiguous", blocks.address(fields), blocks.length(fields))
    if kind == _VIRTUAL:
        return StoredLayout("virtual", None)
    if kind != _CHUNKED:
        raise malformed(_WHAT, "has an unknown kind")
    found = _chunked(blocks, fields) if version == 3 else _indexed(blocks, fields)
    if not all(found.chunk) or not found.element:
        raise malformed(_WHAT, "has chunks without elements")
    return found


def _chunked(blocks: BlockReader, fields: Fields) -> StoredLayout:
    rank = fields.number(1)
    address = blocks.address(fields)
    _check_rank(rank)
    *chunk, element = (fields.number(4) for _ in range(rank))
    return StoredLayout("chunked", address, chunk=tuple(chunk), element=element)


def _indexed(blocks: BlockReader, fields: Fields) -> StoredLayout:
    flags, rank, width = fields.number(1), fields.number(1), fields.number(1)
    _check_rank(rank)
    *chunk, element = (fields.number(width) for _ in range(rank))
    index, size, mask = fields.number(1), 0, 0
    if index == _SINGLE and flags & 2:
        size, mask = blocks.length(fields), fields.number(4)
    fields.take(_PARAMETERS.get(index, 0))
    if not 1 <= index <= _TREE or not 1 <= width <= 8:
        raise malformed(_WHAT, "has an unknown index of chunks")
    address = blocks.address(fields)
    return StoredLayout("chunked", address, size, tuple(chunk), element, index, mask, bool(flags & 1))


def _check_rank(rank: int) -> None:
    if not 2 <= rank <= limits.DIMENSIONS + 1:
        raise malformed(_WHAT, f"has chunks of {rank - 1} dimensions")


def filters_in(message: HeaderMessage) -> tuple[list[Filter], str]:
    """Return the filters in the order in which they were applied, and the name of a filter that is not supported or ''.

    Raises FormatError if the message is not valid.
    """
    fields = message.fields
    version, number = fields.number(1), fields.number(1)
    if version not in (1, 2) or number > 32:
        raise malformed("a list of filters", "has an unknown version, or is too long")
    if version == 1:
        fields.take(6)
    found = [_filter(fields, version) for _ in range(number)]
    unread = next((one.number for one in found if one.number not in (DEFLATE, SHUFFLE, FLETCHER)), None)
    if unread is not None:
        return found, _FILTERS.get(unread, f"number {unread}")
    return found, "deflate, twice" if sum(one.number == DEFLATE for one in found) > 1 else ""


def _filter(fields: Fields, version: int) -> Filter:
    number = fields.number(2)
    named = fields.number(2) if version == 1 or number >= 256 else 0
    fields.take(2)
    values = fields.number(2)
    fields.take(-(-named // 8) * 8 if version == 1 else named)
    data = [fields.number(4) for _ in range(values)]
    fields.take(4 * (version == 1 and values % 2))
    return Filter(number, data[0] if data else 0)


def fill_in(message: HeaderMessage) -> bytes:
    """Return the fill value, which the elements of chunks that are not stored have, as bytes; b'' if it is zero.

    Raises FormatError if the message is not valid.
    """
    fields = message.fields
    if message.kind == FILL_OLD:
        return fields.take(fields.number(4))
    version, flags = fields.number(1), fields.number(1)
    if not 1 <= version <= 3:
        raise malformed("a fill value", "has an unknown version")
    if version < 3:
        fields.take(1)
        said = fields.number(1)
        is_stored = version == 1 or said
    else:
        is_stored = bool(flags & 32)
    return fields.take(fields.number(4)) if is_stored else b""


def chunk_bytes(layout: StoredLayout) -> int:
    """Return the size in bytes of a chunk without filters."""
    return prod(layout.chunk) * layout.element
