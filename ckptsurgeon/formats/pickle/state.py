"""Holds the state of the interpreter of a pickle, and reads the operands of instructions within limits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import FormatError, UnsafeError
from ..base import limits
from ..base.untrusted import growth
from .operands import spelling
from .values import GlobalName, OpaqueResult

__all__ = ["NO_EDGE", "MachineState", "Memo", "Rebuild"]

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
        """End the current frame; raises FormatError if the last instruction exceeds the frame: readers would differ."""
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
