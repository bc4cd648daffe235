"""Reads the two kinds of B-trees (specification, III.A): the entries of version 1, and the records of version 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .blocks import BlockReader, Fields, malformed

__all__ = ["CHUNKS", "GROUP", "Leaf", "Records", "leaves_of", "records_of"]

GROUP, CHUNKS = 0, 1
"""The kinds of trees of version 1: trees of the symbols of a group, and trees of the chunks of a dataset."""


class Leaf(NamedTuple):
    """An entry of a B-tree of version 1: ``key`` is before the child, ``child`` its address, ``after`` the next key."""

    key: bytes
    child: int
    after: bytes


def leaves_of(blocks: BlockReader, address: int, kind: int, key_size: int) -> Iterator[Leaf]:
    """Yield the entries of level 0 of a tree of version 1.

    ``kind`` is the expected kind of the tree, ``GROUP`` or ``CHUNKS``; ``key_size`` is the size of a key in
    bytes. Raises FormatError if the tree is of another kind.
    """
    what = "a node of a B-tree"
    waiting: list[tuple[int, int | None]] = [(address, None)]
    while waiting:
        address, level = waiting.pop()
        head = Fields(blocks.peek(address, 8, what), what, 4)
        said_kind, said_level, number = head.number(1), head.number(1), head.number(2)
        if said_kind != kind or (level is not None and said_level != level):
            raise malformed(what, "has another kind or level than expected")
        nbytes = 8 + 2 * blocks.offset_size + number * (key_size + blocks.offset_size) + key_size
        fields = blocks.block(address, nbytes, what, b"TREE")
        fields.at = 8 + 2 * blocks.offset_size
        pairs = [(fields.take(key_size), blocks.needed(fields, what)) for _ in range(number)]
        keys = [*(key for key, _ in pairs), fields.take(key_size)]
        found = [Leaf(key, child, after) for (key, child), after in zip(pairs, keys[1:], strict=True)]
        if said_level:
            waiting.extend((one.child, said_level - 1) for one in reversed(found))
        else:
            yield from found


class Records(NamedTuple):
    """How the records of a tree of version 2 are stored: the kind of the tree, and the size of a record in bytes."""

    kind: int
    size: int


class _Level(NamedTuple):
    """The limits of the nodes on one level of a tree of version 2.

    ``most`` is the largest number of records in a node. ``below`` is the largest number of records in a node and all
    nodes below it. For each child, a parent node stores the number of records in the child and all nodes below it; this
    number has ``width`` bytes.
    """

    most: int
    below: int
    width: int


def records_of(blocks: BlockReader, address: int, wanted: int) -> tuple[Records, Iterator[bytes]]:
    """Return the layout of records in a tree of version 2, and an iterator over its records, in no particular order.

    ``wanted`` is the kind of a tree. Trees of chunks have two kinds: raises FormatError if the kind of the tree is
    neither ``wanted`` nor ``wanted + 1``.
    """
    what = "the header of a B-tree"
    fields = blocks.checked(address, 22 + blocks.offset_size + blocks.length_size, what, b"BTHD")
    version, kind, node_size = fields.number(1), fields.number(1), fields.number(4)
    size, depth = fields.number(2), fields.number(2)
    fields.take(2)
    root, number = blocks.address(fields), fields.number(2)
    if version or kind not in (wanted, wanted + 1) or not size or node_size < size + 10:
        raise malformed(what, "has an unknown version or kind, or impossible sizes")
    levels = _levels(blocks, node_size, size, depth)
    nodes = _nodes(blocks, root, number, Records(kind, size), levels) if root is not None else iter(())
    return Records(kind, size), nodes


def _levels(blocks: BlockReader, node_size: int, size: int, depth: int) -> list[_Level]:
    most = (node_size - 10) // size
    levels = [_Level(most, most, 0)]
    for _ in range(depth):
        last = levels[-1]
        pointer = blocks.offset_size + _width(levels[0].most) + last.width
        most = (node_size - 10 - pointer) // (size + pointer)
        if most < 1 or last.below > 1 << 62:
            raise malformed("the header of a B-tree", "has impossible sizes")
        below = (most + 1) * last.below + most
        levels.append(_Level(most, below, _width(below)))
    return levels


def _width(most: int) -> int:
    return (most.bit_length() + 7) // 8


def _nodes(blocks: BlockReader, root: int, number: int, records: Records, levels: list[_Level]) -> Iterator[bytes]:
    what, counted = "a node of a B-tree", _width(levels[0].most)
    waiting = [(root, number, len(levels) - 1)]
    while waiting:
        address, number, level = waiting.pop()
        if number > levels[level].most:
            raise malformed(what, "has more records than it can contain")
        pointer = blocks.offset_size + counted + levels[level - 1].width if level else 0
        nbytes = 10 + number * records.size + (number + 1) * pointer
        fields = blocks.checked(address, nbytes, what, b"BTIN" if level else b"BTLF")
        if fields.number(1) or fields.number(1) != records.kind:
            raise malformed(what, "has an unknown version, or another kind than its header")
        yield from [fields.take(records.size) for _ in range(number)]
        for _ in range(number + 1 if level else 0):
            child, below = blocks.needed(fields, what), fields.number(counted)
            fields.take(levels[level - 1].width)
            waiting.append((child, below, level - 1))
