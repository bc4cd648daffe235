"""Reads datatypes and dataspaces, and writes datatypes: dtype and shape of a dataset (specification, IV.A.2)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..base import limits
from ..base.untrusted import check_elements, check_sizes
from .blocks import BlockReader, Fields, malformed

__all__ = ["TEXT_TYPE", "TYPE_MESSAGES", "ElementType", "element_type", "shape_in"]

_FIXED, _FLOAT, _OPAQUE, _ENUM = 0, 1, 5, 8
_CLASSES = {
    2: "time", 3: "string", 4: "bit field", 6: "compound", 7: "reference", 9: "variable length", 10: "array",
    11: "complex",
}  # fmt: skip
_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
_FLOATS: dict[tuple[int, ...], str] = {
    (2, 15, 10, 5, 0, 10, 15): "float16", (2, 15, 7, 8, 0, 7, 127): "bfloat16",
    (4, 31, 23, 8, 0, 23, 127): "float32", (8, 63, 52, 11, 0, 52, 1023): "float64",
}  # fmt: skip
"""{(bytes, sign position, exponent position and size, mantissa position and size, exponent bias): dtype}."""
_IMPLIED = 2
"""The code for a mantissa whose first bit is always 1 and therefore not stored."""
_BOOL = {b"FALSE": 0, b"TRUE": 1}
"""The members of the enumeration that h5py writes for bool."""


class ElementType(NamedTuple):
    """The type of a dataset's elements. If the type cannot be read, ``unread`` is its name, and ``dtype`` is ''.

    ``size`` is the bytes of an element. ``is_text`` is true for strings, ``is_opaque`` for bytes without a meaning.
    """

    dtype: str
    size: int
    big_endian: bool = False
    unread: str = ""
    is_text: bool = False
    is_opaque: bool = False


def element_type(fields: Fields) -> ElementType:
    """Return the type that a datatype message describes; raises FormatError if it is not valid."""
    first, bits, size = fields.number(1), fields.number(3), fields.number(4)
    kind, version = first & 15, first >> 4
    if not 1 <= version <= 5 or not size:
        raise malformed("a datatype", "has an unknown version, or no size")
    if kind == _FIXED:
        return _integer(fields, bits, size)
    if kind == _FLOAT:
        return _float(fields, bits, size)
    if kind == _ENUM:
        return _enumeration(fields, bits & 0xFFFF, size, padded=version < 3)
    if kind == _OPAQUE:
        return ElementType("", size, unread="opaque", is_opaque=True)
    name = _CLASSES.get(kind)
    if name is None:
        raise malformed("a datatype", f"has the unknown class {kind}")
    is_text = kind == 3 or (kind == 9 and bits & 15 == 1)
    return ElementType("", size, unread="string" if is_text else name, is_text=is_text)


def _integer(fields: Fields, bits: int, size: int) -> ElementType:
    offset, precision = fields.number(2), fields.number(2)
    name = _INTEGERS.get(size, "")
    if not name or offset or precision != 8 * size:
        return ElementType("", size, unread=f"integer of {precision} bits in {size} bytes")
    return ElementType(name if bits & 8 else f"u{name}", size, bool(bits & 1) and size > 1)


def _float(fields: Fields, bits: int, size: int) -> ElementType:
    offset, precision = fields.number(2), fields.number(2)
    parts = [fields.number(1) for _ in range(4)]
    found = _FLOATS.get((size, bits >> 8 & 255, *parts, fields.number(4)), "")
    if not found or offset or precision != 8 * size or bits >> 4 & 3 != _IMPLIED or bits & 64:
        return ElementType("", size, unread=f"floating-point type of {precision} bits in {size} bytes")
    return ElementType(found, size, bool(bits & 1))


def _enumeration(fields: Fields, members: int, size: int, *, padded: bool) -> ElementType:
    """Return bool for the enumeration that h5py writes for booleans; for any other, a type that cannot be read.

    ``members`` is the number of names, ``size`` the size of an element in bytes. If ``padded`` is true, each name is
    padded to a multiple of 8 bytes. Raises FormatError if the message is too short.
    """
    unread = ElementType("", size, unread="enumeration")
    base = element_type(fields)
    if members != 2 or base.dtype not in ("int8", "uint8") or size != 1:
        return unread
    names = []
    for _ in range(members):
        end = fields.data.find(b"\0", fields.at)
        if end < 0:
            raise malformed("a datatype", "is too short")
        names.append(fields.take(end - fields.at))
        fields.take(8 - len(names[-1]) % 8 if padded else 1)
    return ElementType("bool", 1) if dict(zip(names, fields.take(2), strict=True)) == _BOOL else unread


def shape_in(blocks: BlockReader, fields: Fields) -> tuple[tuple[int, ...], tuple[int | None, ...]] | None:
    """Return (shape, largest shape) from a dataspace message; None for a dataset that has no elements and no shape.

    In the largest shape, an unlimited dimension is None. Raises FormatError if the message is not valid.
    """
    what = "a dataspace"
    version, rank, flags, kind = (fields.number(1) for _ in range(4))
    if version not in (1, 2) or rank > limits.DIMENSIONS or flags & ~3:
        raise malformed(what, "has an unknown version or flags, or too many dimensions")
    if version == 1:
        fields.take(4)
    elif kind > 2 or (rank and kind != 1):
        raise malformed(what, "has an unknown kind")
    elif kind == 2:
        return None
    shape = tuple(blocks.length(fields) for _ in range(rank))
    check_sizes(shape, "shape")
    check_elements(shape)
    most: list[int | None] = list(shape)
    if flags & 1:
        unlimited = (1 << 8 * blocks.length_size) - 1
        most = [None if size == unlimited else size for size in (blocks.length(fields) for _ in range(rank))]
    if any(larger is not None and larger < size for size, larger in zip(shape, most, strict=True)):
        raise malformed(what, "has a size above its largest size")
    return shape, tuple(most)


def _type_of_integer(size: int, *, signed: bool) -> bytes:
    return struct.pack("<4BI2H", 0x10 | _FIXED, 8 * signed, 0, 0, size, 0, 8 * size)


def _type_of_float(form: tuple[int, ...]) -> bytes:
    size, sign, *parts, bias = form
    exponent_at, exponent, mantissa_at, mantissa = parts
    head = struct.pack("<4BI", 0x10 | _FLOAT, _IMPLIED << 4, sign, 0, size)
    return head + struct.pack("<2H4BI", 0, 8 * size, exponent_at, exponent, mantissa_at, mantissa, bias)


def _type_of_bool() -> bytes:
    names = b"".join(name + bytes(8 - len(name) % 8) for name in _BOOL)
    head = struct.pack("<BHxI", 0x10 | _ENUM, len(_BOOL), 1)
    return head + _type_of_integer(1, signed=True) + names + bytes(_BOOL.values())


TYPE_MESSAGES = {
    **{name: _type_of_integer(size, signed=True) for size, name in _INTEGERS.items()},
    **{f"u{name}": _type_of_integer(size, signed=False) for size, name in _INTEGERS.items()},
    **{name: _type_of_float(form) for form, name in _FLOATS.items()},
    "bool": _type_of_bool(),
}
"""The datatype message of each dtype that is written, little-endian; bool is the enumeration that h5py has for it."""
TEXT_TYPE = bytes([0x13, 0x11, 0, 0])
"""The datatype of texts in UTF-8, padded with zeros; the number of bytes follows."""
