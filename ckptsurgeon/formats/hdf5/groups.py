"""Reads the links of a group: names, and the addresses of objects (specification, III.B, III.C and IV.A.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...errors import FormatError, UnsafeError
from ...util.text import escape
from ..base import limits
from .blocks import BlockReader, Fields, malformed
from .btrees import GROUP, leaves_of, records_of
from .heaps import FractalHeap, local_heap, text_in
from .objects import LINK, LINKS, TABLE, HeaderMessage, one_of

__all__ = ["OUTSIDE", "GroupLink", "is_group", "links_of"]

OUTSIDE = "hdf5 external"
"""The name of the rule in errors about a link to another file, or about a dataset whose values are in another file."""
_SOFT, _EXTERNAL = 1, 64
_LINK_NAMES = 5
"""The kind of B-trees (version 2) whose records have the links of a group."""


class GroupLink(NamedTuple):
    """A link in a group: the ``name`` of an object, and its ``address``; for a soft link, its ``target``, a path."""

    name: str
    address: int
    target: str = ""


def is_group(messages: Sequence[HeaderMessage]) -> bool:
    """Return whether the messages of an object header describe a group."""
    return any(one.kind in (TABLE, LINKS) for one in messages)


def links_of(blocks: BlockReader, messages: Sequence[HeaderMessage]) -> list[GroupLink]:
    """Return the links of a group, sorted by name, as h5py lists them.

    Raises FormatError for links that lead to other files, for a name that occurs twice, and if the group is not valid;
    UnsafeError if there are too many links, or a name is too long.
    """
    found: dict[str, GroupLink] = {}
    for link in _links(blocks, messages):
        if link.name in ("", ".") or "/" in link.name or "\0" in link.name:
            raise malformed("the name of a link", f"is not valid: {escape(repr(link.name), 60)}")
        if len(link.name) > limits.KEY_CHARACTERS:
            raise UnsafeError("the name of a link is too long.", rule="key length")
        if link.name in found:
            raise FormatError(f"a group has the name {escape(link.name)} twice.", rule="duplicate key")
        found[link.name] = link
        if len(found) > limits.TENSORS:
            raise UnsafeError(f"a group has more than {limits.TENSORS:,} links.", rule="tensors")
    return [found[name] for name in sorted(found)]


def _links(blocks: BlockReader, messages: Sequence[HeaderMessage]) -> Iterator[GroupLink]:
    table, dense = one_of(messages, TABLE), one_of(messages, LINKS)
    if table is not None:
        fields = table.fields
        yield from _of_table(blocks, blocks.needed(fields, "a group"), blocks.needed(fields, "a group"))
    for message in messages:
        if message.kind == LINK:
            yield _link(blocks, message.fields)
    if dense is not None:
        yield from _of_heap(blocks, dense.fields)


def _of_table(blocks: BlockReader, tree: int, names: int) -> Iterator[GroupLink]:
    """Yield the links of a group of the older kind: a B-tree of nodes with symbols, and a heap with the names.

    Raises FormatError if the group is not valid.
    """
    heap = local_heap(blocks, names)
    for leaf in leaves_of(blocks, tree, GROUP, blocks.length_size):
        what = "a node of symbols"
        head = Fields(blocks.peek(leaf.child, 8, what), what, 6)
        size = 2 * blocks.offset_size + 24
        number = head.number(2)
        fields = blocks.block(leaf.child, 8 + number * size, what, b"SNOD")
        last, most = (text_in(heap, int.from_bytes(key, "little")) for key in (leaf.key, leaf.after))
        for at in range(8, 8 + number * size, size):
            fields.at = at
            name = text_in(heap, fields.number(blocks.offset_size))
            if not last < name <= most:
                raise malformed(what, "has names out of order")
            yield _symbol(blocks, fields, heap, _text(name))
            last = name


def _symbol(blocks: BlockReader, fields: Fields, heap: bytes, name: str) -> GroupLink:
    address, cached = blocks.address(fields), fields.number(4)
    fields.take(4)
    if cached == 2:  # a soft link
        return GroupLink(name, 0, _text(text_in(heap, fields.number(4))) or "/")
    if address is None or cached > 1:
        raise malformed("a link", "has no address, or is of an unknown kind")
    return GroupLink(name, address)


def _of_heap(blocks: BlockReader, fields: Fields) -> Iterator[GroupLink]:
    """Yield the links of a large group of the newer kind, which are in a fractal heap.

    Raises FormatError if the group is not valid.
    """
    if fields.number(1):
        raise malformed("the links of a group", "have an unknown version")
    fields.take(8 * (fields.number(1) & 1))
    heap, tree = blocks.address(fields), blocks.address(fields)
    if heap is None or tree is None:
        return
    objects = FractalHeap(blocks, heap)
    records, found = records_of(blocks, tree, _LINK_NAMES)
    if records.kind != _LINK_NAMES:
        raise malformed("the links of a group", "are not in a tree of names")
    for record in found:
        yield _link(blocks, Fields(objects.object(record[4:]), "a link"))


def _link(blocks: BlockReader, fields: Fields) -> GroupLink:
    """Return the link in a link message; raises FormatError if it is not valid, or leads into another file."""
    version, flags = fields.number(1), fields.number(1)
    if version != 1:
        raise malformed("a link", "has an unknown version")
    kind = fields.number(1) if flags & 8 else 0
    fields.take(8 * bool(flags & 4) + bool(flags & 16))
    name = _text(fields.take(fields.number(1 << (flags & 3))))
    if kind == 0:
        return GroupLink(name, blocks.needed(fields, "a link"))
    target = fields.take(fields.number(2))
    if kind == _SOFT:
        return GroupLink(name, 0, _text(target) or "/")
    if kind == _EXTERNAL:
        file = _text(target[1:].partition(b"\0")[0])
        raise FormatError(
            f"the link {escape(name)} leads into another file, {escape(file)}, which is not supported.",
            hint="Copy the target of the link into the file, with h5py's copy and expand_external=True.",
            rule=OUTSIDE,
        )
    raise FormatError(f"the link {escape(name)} is of an unknown kind, {kind}.", rule="hdf5 link")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("the name of a link", "is not UTF-8") from None
