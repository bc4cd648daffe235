"""numpy's ``.npy``: numbers are plain data; an array of objects is a pickle behind the header (numpy/lib/format.py)."""

from __future__ import annotations

import re

from .findings import Fault
from .look import Place
from .pickles import look_at_pickles

__all__ = ["MAGIC", "is_array_of_numbers", "look_at_array"]

MAGIC = b"\x93NUMPY"
_FIRST = 4096
_LONGEST = 1 << 20
_NESTED = 32

_TYPE = rb"'[<>|=]?[?bBhHiIlLqQefdgFDGcSaUVmM]\d*(?:\[\w+\])?'"
_NAME = rb"(?:'[^'\\]*'|\"[^\"\\]*\")"
_FIELD = rb"\((?:%b|\(%b, %b\)), %b(?:, \([\d, ]*\))?\)" % (_NAME, _NAME, _NAME, _TYPE)
_RECORD = re.compile(rb"\[%b(?:, %b)*\]" % (_FIELD, _FIELD))
_PLAIN = re.compile(
    rb"\{'descr': %b, 'fortran_order': (?:True|False), 'shape': \((?:\d+L?(?:, |,|(?=\))))*\), \}\s*" % _TYPE
)
"""A header as numpy writes it, of types that hold no objects. Any other is read by numpy as Python spells dictionaries,
so that objects may be in it under many spellings."""


def is_array_of_numbers(head: bytes) -> bool:
    """Tell whether bytes begin as an array of which the whole header is there, and says that it holds no objects."""
    header, length = _header(head)
    return head.startswith(MAGIC) and len(header) == length and _is_plain(header)


def look_at_array(place: Place) -> bool:
    """Look at an array; returns whether it holds more than numbers."""
    head = place.head(_FIRST)
    header, length = _header(head)
    if len(header) < length <= _LONGEST:
        head = place.head(length + 12)
        header, _ = _header(head)
    if len(header) != length:
        place.add("numpy array", fault=Fault("corrupt", "its header is cut short, or over 1 MiB"))
        return True
    if _is_plain(header):
        return False
    place.add("numpy array of objects")
    if look_at_pickles(place, _start(head) + length) is None:
        why = Fault("unreadable", "its header names no numbers, and no pickle is behind it")
        place.look.amend(len(place.look.found) - 1, fault=why)
    return True


def _start(head: bytes) -> int:
    return 10 if head[6:7] == b"\1" else 12


def _header(head: bytes) -> tuple[bytes, int]:
    """Return what there is of the header, and how long it is."""
    start = _start(head)
    length = int.from_bytes(head[8:start], "little")
    return head[start : start + length], length


def _is_plain(header: bytes) -> bool:
    """Tell whether a header is as numpy writes it, and no type in it is of objects; records within records count."""
    for _ in range(_NESTED):
        shorter = _RECORD.sub(b"'V1'", header)
        if shorter == header:
            break
        header = shorter
    return _PLAIN.fullmatch(header) is not None
