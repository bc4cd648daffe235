"""Holds the state of the interpreter of a pickle, and reads the operands of instructions within limits.

The tables of operand lengths follow CPython's ``Lib/pickletools.py``, and are tested against it. If the operand of an
instruction is longer than the rest of the data, all readers of pickles stop at this instruction.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Mapping
from math import isinf
from typing import Any

from ...errors import FormatError, UnsafeError
from ..base import limits
from ..base.untrusted import growth
from .values import GlobalName, OpaqueResult

__all__ = [
    "BARE",
    "FIXED",
    "LENGTHS",
    "LINES",
    "NO_EDGE",
    "MachineState",
    "Memo",
    "MoreError",
    "Rebuild",
    "TruncatedError",
    "UnknownOpcodeError",
    "bounds",
    "is_marked",
    "line_index",
    "spelling",
]

NO_EDGE = sys.maxsize
"""The value of ``edge`` outside a frame."""

Rebuild = Mapping[tuple[str, str], Callable[..., object]]


class Memo:
    """The memo of a pickle: values that it can refer to by index.

    ``near`` is a list for the indices 0, 1, 2 … in order, as every pickler writes them; it takes a quarter of the time
    and memory of a dict. ``far`` is a dict for all other indices; once it has an entry, ``near`` stops growing.
    """

    __slots__ = ("far", "near")

    def __init__(self) -> None:
        self.near: list[Any] = []
        self.far: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.near) + len(self.far)

    def put(self, index: int, value: Any) -> None:
        """Remember a value under an index; raises FormatError if the index is negative or too large."""
        if 0 <= index < len(self.near):
            self.near[index] = value
        elif index == len(self.near) and not self.far:
            self.near.append(value)
        elif 0 <= index <= limits.PICKLE_MEMO:
            self.far[index] = value
        else:
            raise FormatError(f"the pickle uses the invalid memo index {index}.", rule="pickle")

    def get(self, index: int) -> Any:
        """Return the value at an index; raises KeyError if there is none."""
        return self.near[index] if 0 <= index < len(self.near) else self.far[index]


class MachineState:
    """The state of the interpreter of a pickle: stack, marks, memo, and the remaining limits.

    ``room`` is how many bytes of text may still follow; ``edge`` is the offset at which the current frame ends.
    ``stored`` is the number of bytes of the pickle in the file; limits are higher for a large pickle. ``rebuild`` and
    ``persistent`` mean the same as in ``machine.load``.
    """

    def __init__(
        self, data: bytes, *, rebuild: Rebuild, persistent: Callable[[Any], object], start: int = 0, stored: int = 0
    ) -> None:
        if len(data) > limits.PICKLE_BYTES:
            raise UnsafeError(
                f"the pickle has {len(data)} bytes, more than the limit of {limits.PICKLE_BYTES}.", rule="pickle size"
            )
        self.data = data
        self.position = start
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo = Memo()
        self.room = limits.PICKLE_TEXT
        self.edge = NO_EDGE
        self.calls = 0
        grown = growth(stored)
        self.most_ops, self.most_rare, self.most_calls = (
            int(grown * most) for most in (limits.PICKLE_OPS, limits.PICKLE_RARE, limits.PICKLE_CALLS)
        )
        self._names: dict[tuple[str, str], GlobalName] = {}
        self._rebuild = rebuild
        self._persistent = persistent

    def _broken(self, why: str) -> FormatError:
        return FormatError(f"the pickle {why} (near byte {self.position}).", rule="pickle")

    # Instructions that would import or call something: they only make stand-ins.

    def _name(self, module: str, name: str) -> None:
        known = (module, name)
        if known not in self._names:
            if len(self._names) >= limits.PICKLE_NAMES:
                raise UnsafeError(
                    f"the pickle has more names than the limit of {limits.PICKLE_NAMES}.", rule="pickle names"
                )
            self._names[known] = GlobalName(module, name, self._rebuild.get(known))
        self.stack.append(self._names[known])

    def _called(self, function: object, args: object) -> OpaqueResult:
        """Return a stand-in for the result of a call that the pickle asks for; nothing is called.

        Raises FormatError if ``function`` is not the name of a function, or ``args`` is not a tuple.
        """
        if type(function) not in (GlobalName, OpaqueResult):
            raise self._broken("calls something that is not a function")
        if not isinstance(args, tuple):
            raise self._broken("calls a function with arguments that are not a tuple")
        return OpaqueResult(function, args)

    def _too_much_text(self) -> UnsafeError:
        return UnsafeError(
            f"the pickle has more text than the limit of {limits.PICKLE_TEXT} bytes.", rule="pickle text"
        )

    def _too_many_calls(self) -> UnsafeError:
        return UnsafeError(
            f"the pickle calls functions that make values more often than the limit of {self.most_calls} times.",
            rule="pickle calls",
        )

    # Operands of instructions.

    def _line(self, op: int, raw: bytes) -> bytes:
        """Return the line of text ``raw``, the operand of the instruction ``op``, without its newline.

        Raises FormatError if pickle readers disagree about the line.
        """
        line = raw[:-1]
        if spelling(op, line) != "alike":
            what = "string without quotes" if op == 0x53 else "number in a form that no pickler writes"
            raise self._broken(f"has a {what}")
        return line

    def _leave_frame(self, position: int) -> None:
        """End the current frame; raises FormatError if the last instruction exceeds it: readers disagree about this."""
        if position > self.edge:
            raise self._broken("has an instruction that reaches beyond its frame")
        self.edge = NO_EDGE

    def _text(self, raw: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
        self.room -= len(raw)
        if self.room < 0:
            raise self._too_much_text()
        return raw.decode(encoding, errors)

    def _old_text(self, raw: bytes) -> str:
        """Return a Python 2 string as text: decoded as UTF-8, as torch.load does, or as Latin-1 if it is not UTF-8."""
        try:
            return self._text(raw, errors="strict")
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    def _pop_mark(self) -> list[Any]:
        items = self.stack
        if not self.marks:
            raise self._broken("closes a mark that was never opened")
        self.stack = self.marks.pop()
        return items


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
    """Return whether all pickle readers agree on ``line``, the operand of the instruction ``op``.

    The answer is "alike" if all read the same value, "apart" if they differ, and "not" if no reader accepts the line.
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
