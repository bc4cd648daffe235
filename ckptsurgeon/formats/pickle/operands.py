"""Finds the operand of each instruction of a pickle, by tables of operand lengths.

Follows CPython's ``Lib/pickletools.py``, and is tested against it. If the operand of an instruction is longer than the
rest of the data, all readers of pickles stop at this instruction.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import isinf

__all__ = [
    "BARE",
    "FIXED",
    "LENGTHS",
    "LINES",
    "MoreError",
    "TruncatedError",
    "UnknownOpcodeError",
    "bounds",
    "is_marked",
    "line_index",
    "spelling",
]

FIXED: Mapping[int, int] = {
    **dict.fromkeys(b"(012NQR)abdelostu]}\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98.", 0),
    **dict.fromkeys(b"Khq\x80\x82", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
}
"""By opcode: the length of the operand in bytes, for instructions of fixed length."""
BARE = frozenset(op for op, length in FIXED.items() if not length)
"""Instructions without an operand."""

LENGTHS: Mapping[int, struct.Struct] = {
    **dict.fromkeys(b"CU\x8a\x8c", struct.Struct("<B")),
    **dict.fromkeys(b"BTX", struct.Struct("<I")),
    **dict.fromkeys(b"\x8b", struct.Struct("<i")),
    **dict.fromkeys(b"\x8d\x8e\x96", struct.Struct("<Q")),
}
"""By opcode: the integer type of the length that precedes the operand.

A length of BINSTRING (T) from 2 GiB on is negative for Python's reader, but not for CPython's reader in C."""

LINES: Mapping[int, int] = {**dict.fromkeys(b"FILPSVgp", 1), **dict.fromkeys(b"ci", 2)}
"""By opcode: how many lines of text the operand has."""

_DIGITS = rb"-?(?:0|[1-9]\d*)"
_USUAL: Mapping[int, re.Pattern[bytes]] = {
    ord("I"): re.compile(_DIGITS + rb"|0[01]"),
    ord("L"): re.compile(_DIGITS + rb"L?"),
    ord("F"): re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)"),
    ord("S"): re.compile(rb"'.*'|\".*\"", re.DOTALL),
    **dict.fromkeys(b"gp", re.compile(_DIGITS)),
}
"""By opcode: a pattern of the lines that picklers write; all readers interpret these in the same way."""

_NUMBER = re.compile(rb"\s*[+-]?\d\w*\s*L?(?:\0.*)?|\0.*", re.DOTALL)
_FLOAT = re.compile(rb"\s*[+-]?(?:\d|\.\d|inf|nan)[\w.+-]*\s*(?:\0.*)?", re.DOTALL | re.IGNORECASE)
_QUOTED = re.compile(rb"\s*(?:'.*'|\".*\")\s*", re.DOTALL)
_READ: Mapping[int, re.Pattern[bytes]] = {
    **dict.fromkeys(b"ILgp", _NUMBER), ord("F"): _FLOAT, ord("S"): _QUOTED
}  # fmt: skip
"""By opcode: a pattern of other lines that some readers accept.

For example, CPython's reader in C stops at a zero byte and accepts octal numbers."""
_INDEX = re.compile(rb"0|[1-9]\d{0,7}")


class TruncatedError(Exception):
    """Raised if the file ends inside an instruction; the message is the reason."""


class MoreError(Exception):
    """Raised if the data that was read ends inside an instruction, but the file continues."""


class UnknownOpcodeError(KeyError):
    """Raised for a byte that is not an instruction of any protocol."""


def bounds(data: bytes, at: int, total: int) -> tuple[int, int]:
    """Return (begin, end) of the operand of the instruction at the offset ``at``, without the length in front of it.

    ``data`` may be only the beginning of a file of ``total`` bytes. Raises UnknownOpcodeError if no protocol has the
    instruction, TruncatedError if the operand ends beyond ``total``, MoreError if it ends beyond ``data``.
    """
    op, begin = data[at], at + 1
    length = FIXED.get(op)
    if length is not None:
        end = begin + length
        if end > len(data):
            raise _cut_short(end, total)
        return begin, end
    lines = LINES.get(op)
    if lines is not None:
        end = data.find(b"\n", begin) + 1
        if end and lines > 1:
            end = data.find(b"\n", end) + 1
        if not end:
            raise _cut_short(len(data) + 1, total, "ends inside a line")
        return begin, end
    form = LENGTHS.get(op)
    if form is None:
        raise UnknownOpcodeError(op)
    if begin + form.size > len(data):
        raise _cut_short(begin + form.size, total)
    length = form.unpack_from(data, begin)[0]
    begin += form.size
    if length < 0:
        raise TruncatedError("claims a negative length")
    if begin + length > len(data):
        raise _cut_short(begin + length, total, f"claims {length} bytes, but only {total - begin} remain")
    return begin, begin + length


def is_marked(head: bytes) -> bool:
    """Return whether ``head`` begins with the opcode PROTO and a protocol number, as pickles of protocols 2 to 5 do."""
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5


def spelling(op: int, line: bytes) -> str:
    """Return whether all pickle readers read the same value from ``line``, the operand of the instruction ``op``.

    The answer is "alike" if they do, "apart" if they differ, and "not" if no reader accepts the line.
    """
    usual = _USUAL[op]
    if usual.fullmatch(line) is not None:
        return "apart" if op == 0x46 and isinf(float(line)) and b"inf" not in line else "alike"
    return "apart" if _READ[op].fullmatch(line) is not None else "not"


def line_index(line: bytes) -> tuple[int, bool]:
    """Return the memo index in a line as CPython's reader in C reads it, and whether all readers read the same index.

    Raises ValueError if the line is not a valid index.
    """
    index = int(line.partition(b"\0")[0])
    if index < 0:
        raise ValueError("a memo entry has a negative index")
    return index, _INDEX.fullmatch(line) is not None


def _cut_short(end: int, total: int, why: str = "ends too early") -> Exception:
    return TruncatedError(why) if end > total else MoreError()
