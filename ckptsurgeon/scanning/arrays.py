"""numpy's ``.npy``: numbers are plain data; an array of objects is a pickle behind the header."""

from __future__ import annotations

import re

from .findings import Fault
from .look import Place
from .pickles import look_at_pickles

__all__ = ["MAGIC", "look_at_array"]

MAGIC = b"\x93NUMPY"
_LONGEST = 1 << 20
_OBJECTS = re.compile(rb"""['"][<>|=]?O[\d]*['"]""")
"""The type of objects, alone or as a field of a record (numpy/lib/format.py)."""


def look_at_array(place: Place) -> bool:
    """Look at an array; returns whether it holds more than numbers."""
    head = place.head(_LONGEST + 12)
    wide = head[6:7] != b"\1"
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    header = head[start : start + length]
    if len(header) != length:
        place.add("numpy array", fault=Fault("corrupt", "its header is cut short, or over 1 MiB"))
        return True
    if not _OBJECTS.search(header):
        return False
    place.add("numpy array of objects")
    if look_at_pickles(place, start + length) is None:
        place.look.amend(len(place.look.found) - 1, fault=Fault("corrupt", "it has no pickle behind its header"))
    return True
