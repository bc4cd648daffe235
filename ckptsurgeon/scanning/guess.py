"""Whether bytes are a pickle: those of protocols 0 and 1 begin with nothing that says so."""

from __future__ import annotations

import re

from .state import State
from .strings import text_at

__all__ = ["BEGINS", "MAGICS", "SHORTEST", "imports_something", "inner_bytes"]

BEGINS = frozenset(b"()]}NIJKLMFGSTUVXBCcPi\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\xc2\x1f\x93\xfd")
"""First bytes of pickles that do not fail at once, in a byte string or in UTF-8, and of archives."""
MAGICS = re.compile(rb"PK\x03\x04|\x1f\x8b\x08|BZh[1-9]1AY|\xfd7zXZ\0|\x93NUMPY")
SHORTEST = 6
"""Bytes of the shortest pickle that imports something."""

_MODULE = re.compile(r"[^\W\d][\w.]*")
_TEXT = b"STUVX\x8c\x8d"


def imports_something(tried: State, *, marked: bool = False) -> bool:
    """Return whether what was tried as a pickle is one that matters: it imports, and ends or calls before it fails.

    Names must be such as Python can import, since text whose first word begins with a ``c`` is an import too; not so
    in what is ``marked`` with its protocol and ends without fault.
    """
    if marked and tried.stopped and not tried.fault:
        return bool(tried.names)
    real = [one for one in tried.names.values() if _MODULE.fullmatch(one.module) and _MODULE.fullmatch(one.name)]
    return bool(real) if tried.stopped else any(one.called for one in real)


def inner_bytes(data: bytes, at: int, begin: int, end: int) -> bytes:
    """Return what a text or byte string spells. Text is Latin-1 where it can be: so protocols 0 to 2 spell bytes."""
    if data[at] not in _TEXT:
        return data[begin:end]
    text = text_at(data, at, end - begin) or ""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
