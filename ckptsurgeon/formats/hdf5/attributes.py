"""Reads the attributes of an object that are short texts (specification, IV.A.2.m)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from ...util.text import escape
from ..base import limits
from .blocks import BlockReader, Fields, malformed
from .heaps import GlobalHeap
from .objects import ATTRIBUTE, ATTRIBUTES, HeaderMessage, one_of
from .types import element_type, shape_in

__all__ = ["Unread", "has_attribute_heap", "texts_of"]

_STRING, _VARIABLE = 3, 9


@dataclass
class Unread:
    """The names of attributes that are not read: texts that are too long, and attributes that are not single texts."""

    long: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def texts_of(
    blocks: BlockReader, heap: GlobalHeap, messages: Sequence[HeaderMessage], unread: Unread
) -> dict[str, str]:
    """Return {name: text} for the attributes of an object that are single short texts; add others to ``unread``."""
    found: dict[str, str] = {}
    for message in messages:
        if message.kind == ATTRIBUTE and not message.shared:
            name, text = _attribute(blocks, heap, message.fields)
            if isinstance(text, str):
                found[name] = text
            else:
                (unread.long if text is _TOO_LONG else unread.others).append(name)
    return found


def has_attribute_heap(blocks: BlockReader, messages: Sequence[HeaderMessage]) -> bool:
    """Return whether an object stores its attributes in a heap, as it does if they are many or long.

    Such attributes are not read.
    """
    info = one_of(messages, ATTRIBUTES)
    if info is None:
        return False
    fields = info.fields
    fields.take(1)
    fields.take(2 * (fields.number(1) & 1))
    return blocks.address(fields) is not None


class _Reason(Enum):
    """A reason why an attribute is not read."""

    TOO_LONG = "it is too long"
    OTHER = "it is not a single text"


_TOO_LONG, _OTHER = _Reason.TOO_LONG, _Reason.OTHER


def _attribute(blocks: BlockReader, heap: GlobalHeap, fields: Fields) -> tuple[str, str | _Reason]:
    """Return the name and the text of an attribute, or the reason why it is not read, in place of the text.

    Raises FormatError if the attribute is not valid.
    """
    version, flags = fields.number(1), fields.number(1)
    if not 1 <= version <= 3:
        raise malformed("an attribute", "has an unknown version")
    sizes = [fields.number(2) for _ in range(3)]
    fields.take(version == 3)
    step = 8 if version == 1 else 1
    name, kind, space = (Fields(_padded(fields, size, step), "an attribute") for size in sizes)
    said = escape(name.data.rstrip(b"\0").decode("utf-8", "replace"), limits.HDF5_NAME)
    if version > 1 and flags & 3:  # its type or its dataspace is elsewhere
        return said, _OTHER
    first = kind.data[0] & 15 if kind.data else 0
    found = element_type(kind)
    shape = shape_in(blocks, space)
    if not found.is_text or shape is None or shape[0]:
        return said, _OTHER
    if first == _STRING:
        return said, _TOO_LONG if found.size > limits.HDF5_TEXT else _decoded(fields.take(found.size))
    nbytes, address, index = fields.number(4), blocks.address(fields), fields.number(4)
    if nbytes > limits.HDF5_TEXT:
        return said, _TOO_LONG
    return said, _decoded(heap.object(address, index, nbytes)) if address and nbytes else ""


def _padded(fields: Fields, size: int, step: int) -> bytes:
    data = fields.take(size)
    fields.take(-size % step)
    return data


def _decoded(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
