"""The lengths of a pickle's instructions: the table that divides streams into instructions.

After CPython's ``Lib/pickletools.py``, against which it is tested. An instruction whose operand is longer than what
remains ends the stream for every reader.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import isinf

__all__ = ["FIXED", "LENGTHS", "LINES", "MoreError", "TruncatedError", "bounds", "is_marked", "line_index", "spelling"]

FIXED: Mapping[int, int] = {
    **dict.fromkeys(b"(012NQR)abdelostu]}\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98.", 0),
    **dict.fromkeys(b"Khq\x80\x82", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
}
"""Bytes of the operand."""

LENGTHS: Mapping[int, struct.Struct] = {
    **dict.fromkeys(b"CU\x8a\x8c", struct.Struct("<B")),
    **dict.fromkeys(b"BTX", struct.Struct("<I")),
    **dict.fromkeys(b"\x8b", struct.Struct("<i")),
    **dict.fromkeys(b"\x8d\x8e\x96", struct.Struct("<Q")),
}
"""The type of the length before the operand. That of BINSTRING is negative from 2 GiB on, except for C's reader, which
reads on."""

LINES: Mapping[int, int] = {**dict.fromkeys(b"FILPSVgp", 1), **dict.fromkeys(b"ci", 2)}
"""Lines of text that the operand has."""


_DIGITS = rb"-?(?:0|[1-9]\d*)"
_USUAL: Mapping[int, re.Pattern[bytes]] = {
    ord("I"): re.compile(_DIGITS + rb"|0[01]"),
    ord("L"): re.compile(_DIGITS + rb"L?"),
    ord("F"): re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)"),
    ord("S"): re.compile(rb"'.*'|\".*\"", re.DOTALL),
}
"""Lines as picklers write them; all readers read them alike."""

_NUMBER = re.compile(rb"\s*[+-]?\d\w*\s*L?(?:\0.*)?|\0.*", re.DOTALL)
_FLOAT = re.compile(rb"\s*[+-]?(?:\d|\.\d|inf|nan)[\w.+-]*\s*(?:\0.*)?", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(rb"\s*(?:'.*'|\".*\")\s*", re.DOTALL)
_READ: Mapping[int, re.Pattern[bytes]] = {**dict.fromkeys(b"IL", _NUMBER), ord("F"): _FLOAT, ord("S"): _QUOTED}
"""Lines that some readers accept: C's ignore everything after a zero byte, and accept octal numbers."""
_INDEX = re.compile(rb"0|[1-9]\d{0,7}")


class TruncatedError(Exception):
    """Raised if the stream ends inside an instruction; the text has details."""


class MoreError(Exception):
    """Raised if the data read so far ends inside an instruction, and the file continues."""


def bounds(data: bytes, at: int, total: int) -> tuple[int, int]:
    """Return the bounds of the operand of the instruction at ``at``, without its length.

    ``total`` is the length of the whole data. Raises KeyError for an unknown opcode, TruncatedError if the stream ends
    before the operand, MoreError if only the data read so far does.
    """
    op, begin = data[at], at + 1
    if op in LINES:
        return begin, _lines_end(data, begin, LINES[op], total)
    if op in LENGTHS:
        form = LENGTHS[op]
        _need(data, begin + form.size, total)
        length = form.unpack_from(data, begin)[0]
        if length < 0:
            raise TruncatedError("claims a negative length")
        begin, length = begin + form.size, length
    else:
        length = FIXED[op]
    _need(data, begin + length, total)
    return begin, begin + length


def is_marked(head: bytes) -> bool:
    """Return whether bytes begin with a protocol, as all pickles from protocol 2 on do."""
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5


def spelling(data: bytes, at: int, begin: int, end: int) -> str:
    """Return how readers read the line of an instruction: ``alike``, ``apart`` or, if all of them fail, ``not``."""
    usual = _USUAL.get(data[at])
    if usual is None:
        return "alike"
    if usual.fullmatch(data, begin, end - 1) is not None:
        is_float = data[at] == 0x46
        return (
            "apart" if is_float and isinf(float(data[begin : end - 1])) and b"inf" not in data[begin:end] else "alike"
        )
    return "apart" if _READ[data[at]].fullmatch(data, begin, end - 1) is not None else "not"


def line_index(line: bytes) -> tuple[int, bool]:
    """Return the number of a memo entry as C reads it, and whether all readers do; raises ValueError if invalid."""
    index = int(line.partition(b"\0")[0])
    if index < 0:
        raise ValueError("a memo entry has a negative number")
    return index, _INDEX.fullmatch(line) is not None


def _lines_end(data: bytes, begin: int, number: int, total: int) -> int:
    for _ in range(number):
        begin = data.find(b"\n", begin) + 1
        if not begin:
            _need(data, len(data) + 1, total)
    return begin


def _need(data: bytes, end: int, total: int) -> None:
    if end > total:
        raise TruncatedError(f"claims {end - len(data)} bytes beyond its end" if end > total + 1 else "ends too early")
    if end > len(data):
        raise MoreError
