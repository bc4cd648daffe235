"""Reads the attributes of an object that are short texts (specification, IV.A.2.m)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...util.text import escape
from ..base import limits
from .blocks import BlockReader, Fields, malformed
from .heaps import GlobalHeap
from .objects import ATTRIBUTE, ATTRIBUTES, HeaderMessage, one_of
from .types import element_type, shape_in

__all__ = ["has_attribute_heap", "texts_of"]

_STRING, _VARIABLE = 3, 9


def texts_of(
    blocks: BlockReader, heap: GlobalHeap, messages: Sequence[HeaderMessage], long: list[str]
) -> dict[str, str]:
    """Return {name: text} for the attributes of an object that are single short texts.

    The names of attributes that are too long are added to ``long``.
    """
    found: dict[str, str] = {}
    for message in messages:
        if message.kind == ATTRIBUTE and not message.shared:
            for name, text in _text(blocks, heap, message.fields):
                if text is None:
                    long.append(name)
                else:
                    found[name] = text
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


def _text(blocks: BlockReader, heap: GlobalHeap, fields: Fields) -> Iterator[tuple[str, str | None]]:
    """Yield (name, text) if an attribute is a single text, or (name, None) if the text is too long; else nothing.

    Raises FormatError if the attribute is not valid.
    """
    version, flags = fields.number(1), fields.number(1)
    if not 1 <= version <= 3:
        raise malformed("an attribute", "has an unknown version")
    sizes = [fields.number(2) for _ in range(3)]
    fields.take(version == 3)
    step = 8 if version == 1 else 1
    name, kind, space = (Fields(_padded(fields, size, step), "an attribute") for size in sizes)
    if version > 1 and flags & 3:  # its type or its dataspace is elsewhere
        return
    first = kind.data[0] & 15 if kind.data else 0
    found = element_type(kind)
    shape = shape_in(blocks, space)
    if not found.is_text or shape is None or shape[0]:
        return
    said = escape(name.data.rstrip(b"\0").decode("utf-8", "replace"), limits.HDF5_NAME)
    if first == _STRING:
        yield said, None if found.size > limits.HDF5_TEXT else _decoded(fields.take(found.size))
        return
    nbytes, address, index = fields.number(4), blocks.address(fields), fields.number(4)
    if nbytes > limits.HDF5_TEXT:
        yield said, None
    else:
        yield said, _decoded(heap.object(address, index, nbytes)) if address and nbytes else ""


def _padded(fields: Fields, size: int, step: int) -> bytes:
    data = fields.take(size)
    fields.take(-size % step)
    return data


def _decoded(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
