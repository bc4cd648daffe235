"""Reads object headers, versions 1 and 2: the messages that describe a group or a dataset (specification, IV.A)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...errors import UnsafeError
from ..base import limits
from .blocks import BlockReader, Fields, malformed

__all__ = [
    "ATTRIBUTE", "ATTRIBUTES", "CONTIGUITY", "EXTERNAL", "FILL", "FILL_OLD", "FILTERS", "LINK", "LINKS", "SPACE",
    "TABLE", "TYPE", "HeaderMessage", "messages_at", "one_of",
]  # fmt: skip

SPACE, LINKS, TYPE, FILL_OLD, FILL, LINK, EXTERNAL, CONTIGUITY = 1, 2, 3, 4, 5, 6, 7, 8
FILTERS, ATTRIBUTE, _CONTINUATION, TABLE, ATTRIBUTES = 11, 12, 16, 17, 21
"""The type numbers of the messages that are read: dataspace, link info, datatype, (old) fill value, link, external
files, layout, filters, attribute, continuation, symbol table, attribute info."""
_NAMES = {SPACE: "dataspace", TYPE: "datatype", CONTIGUITY: "layout", FILTERS: "filters", FILL: "fill value"}
_SHARED = 2
_WHAT = "an object header"


class HeaderMessage(NamedTuple):
    """A message: its type, its bytes and their address; ``shared`` is true if its content is stored elsewhere."""

    kind: int
    data: bytes
    address: int
    shared: bool

    @property
    def fields(self) -> Fields:
        """The content of the message, as ``Fields`` that are read from front to back."""
        return Fields(self.data, f"a message of type {self.kind}")


def one_of(messages: Sequence[HeaderMessage], kind: int) -> HeaderMessage | None:
    """Return the only message of a kind, None if there is none; raises FormatError if there are several."""
    found = [one for one in messages if one.kind == kind]
    if len(found) > 1:
        raise malformed(_WHAT, f"has {len(found)} messages of the kind {_NAMES.get(kind, kind)}, not one")
    return found[0] if found else None


def messages_at(blocks: BlockReader, address: int) -> list[HeaderMessage]:
    """Return the messages of the object header at an address, in order.

    Raises FormatError if the header is not valid, UnsafeError if it has too many messages.
    """
    later = blocks.peek(address, 4, _WHAT) == b"OHDR"
    messages: list[HeaderMessage] = []
    waiting: list[tuple[int, int]] = []
    for message in _later(blocks, address, waiting) if later else _earlier(blocks, address, waiting):
        if message.kind == _CONTINUATION:
            fields = message.fields
            waiting.append((blocks.needed(fields, _WHAT), blocks.length(fields)))
        elif message.kind:
            messages.append(message)
        if len(messages) + len(waiting) > limits.HDF5_MESSAGES:
            raise UnsafeError(f"an object has more than {limits.HDF5_MESSAGES:,} messages.", rule="hdf5 messages")
    return messages


def _earlier(blocks: BlockReader, address: int, waiting: list[tuple[int, int]]) -> Iterator[HeaderMessage]:
    """Yield the messages of a header of version 1, whose first block is at ``address``.

    ``waiting`` has (address, length) of further blocks; the caller adds a block when it gets a message that names it.
    Raises FormatError if the header is not valid.
    """
    head = blocks.block(address, 16, _WHAT)
    if head.number(1) != 1:
        raise malformed(_WHAT, "has an unknown version")
    head.take(1)
    number = head.number(2)
    head.take(4)
    waiting.append((address + 16, head.number(4)))
    while waiting and number:
        begin, length = waiting.pop(0)
        fields = blocks.block(begin, length, _WHAT)
        while fields.left and number:
            kind, nbytes, flags = fields.number(2), fields.number(2), fields.number(1)
            fields.take(3)
            place = begin + fields.at
            yield HeaderMessage(kind, fields.take(nbytes), place, bool(flags & _SHARED))
            number -= 1
    if number or waiting:
        raise malformed(_WHAT, "has more or fewer messages than it says")


def _later(blocks: BlockReader, address: int, waiting: list[tuple[int, int]]) -> Iterator[HeaderMessage]:
    """Yield the messages of a header of version 2, whose first block is at ``address``.

    ``waiting`` has (address, length) of further blocks; the caller adds a block when it gets a message that names it.
    Raises FormatError if the header is not valid.
    """
    head = Fields(blocks.peek(address, 6, _WHAT), _WHAT, 4)
    version, flags = head.number(1), head.number(1)
    if version != 2:
        raise malformed(_WHAT, "has an unknown version")
    begin = 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(blocks.peek(address + begin, width, _WHAT), "little")
    fields = blocks.checked(address, begin + width + length + 4, _WHAT, b"OHDR")
    fields.at = begin + width
    yield from _of_block(fields, address, 2 * bool(flags & 4))
    while waiting:
        address, length = waiting.pop(0)
        if length < 8:
            raise malformed(_WHAT, "has a continuation that is too short")
        yield from _of_block(blocks.checked(address, length, _WHAT, b"OCHK"), address, 2 * bool(flags & 4))


def _of_block(fields: Fields, address: int, order: int) -> Iterator[HeaderMessage]:
    """Yield the messages of a block, which is at ``address``.

    In files that store the creation order of messages, a field of ``order`` bytes follows the flags of each message;
    else ``order`` is 0.
    """
    while fields.left >= 4 + order:
        kind, nbytes, flags = fields.number(1), fields.number(2), fields.number(1)
        fields.take(order)
        place = address + fields.at
        yield HeaderMessage(kind, fields.take(nbytes), place, bool(flags & _SHARED))
