"""Scans numpy's ``.npy``: an array of numbers is plain data, an array of objects is a pickle (numpy/lib/format.py)."""

from __future__ import annotations

import re
from math import prod

from ....formats.base.slice import FileSlice
from ..context import ScanItem
from ..findings import Fault
from ..pickle.pickles import look_at_pickles

__all__ = ["MAGIC", "is_array_of_numbers", "look_at_array"]

MAGIC = b"\x93NUMPY"
_FIRST = 4096
_LONGEST = 1 << 20
_NESTED = 32

_TYPE = rb"'[<>|=]?(?P<code>[?bBhHiuIlLqQefdgFDGcSaUVmM])(?P<size>\d{0,18})(?:\[\w+\])?'"
_NAME = rb"(?:'[^'\\]*'|\"[^\"\\]*\")"
_SHAPE = rb"\((?P<shape>(?:\d+L?(?:, |,|(?=\))))*)\)"
_FIELD = rb"\((?:%b|\(%b, %b\)), %b(?:, %b)?\)" % (_NAME, _NAME, _NAME, _TYPE, _SHAPE)
_FIELDS = re.compile(_FIELD)
_UNNAMED = re.sub(rb"\?P<\w+>", rb"?:", _FIELD)
_RECORD = re.compile(rb"\[%b(?:, %b)*\]" % (_UNNAMED, _UNNAMED))
_PLAIN = re.compile(rb"\{'descr': %b, 'fortran_order': (?:True|False), 'shape': %b, \}\s*" % (_TYPE, _SHAPE))
"""A header as numpy writes it, for dtypes without objects.

numpy reads a header as a Python literal, in which a dtype with objects can be written in many ways. So an array with
any other header is treated as an array of objects.
"""


def is_array_of_numbers(head: bytes) -> bool:
    """Return whether ``head`` begins with the complete header of an array without objects."""
    header, length = _header(head)
    return head.startswith(MAGIC) and len(header) == length and _plain(header) is not None


def look_at_array(place: ScanItem) -> bool:
    """Scan a numpy array file; returns whether a finding was added. A plain array of numbers has no finding."""
    head = place.head(_FIRST)
    header, length = _header(head)
    if len(header) < length <= _LONGEST:
        head = place.head(length + 12)
        header, _ = _header(head)
    if len(header) != length:
        why = "its header is larger than 1 MiB" if length > _LONGEST else "its header is truncated"
        place.add("numpy array", fault=Fault("corrupt", why))
        return True
    begin = _start(head) + length
    plain = _plain(header)
    if plain is not None:
        return _look_behind(place, begin + _nbytes(plain))
    place.add("numpy array of objects")
    found = look_at_pickles(place, begin)
    if found is None:
        fault = Fault("unreadable", "its header has no numeric dtype, and no pickle follows")
        place.state.amend(len(place.state.found) - 1, fault=fault)
    else:
        _look_behind(place, found.end)
    return True


def _look_behind(place: ScanItem, end: int) -> bool:
    """Scan the bytes after the end of the array, which numpy would read as the next array.

    Returns whether a finding was added.
    """
    rest = place.file.size - end
    if rest <= 0:
        return False
    return place.inside(FileSlice(place.file, end, rest), f"{rest} bytes after an array").judge()


def _nbytes(of: re.Match[bytes]) -> int:
    """Return the size in bytes of what the match ``of`` describes: an array, or a field of a structured dtype."""
    size = int(of["size"] or 1) * (4 if of["code"] == b"U" else 8 if of["code"] in b"mM" and not of["size"] else 1)
    return size * prod(int(one[:20]) for one in re.findall(rb"\d+", of["shape"] or b""))


def _start(head: bytes) -> int:
    return 10 if head[6:7] == b"\1" else 12


def _header(head: bytes) -> tuple[bytes, int]:
    """Return (header of an array, its full length in bytes); ``head`` may contain only the beginning of the header."""
    start = _start(head)
    length = int.from_bytes(head[8:start], "little")
    return head[start : start + length], length


def _plain(header: bytes) -> re.Match[bytes] | None:
    """Match a header with the form that numpy writes for a dtype without objects; return None if it has another form.

    A structured dtype is first replaced by raw bytes of the same size.
    """
    for _ in range(_NESTED):
        shorter = _RECORD.sub(lambda record: b"'V%d'" % sum(map(_nbytes, _FIELDS.finditer(record[0]))), header)
        if shorter == header:
            break
        header = shorter
    return _PLAIN.fullmatch(header)
