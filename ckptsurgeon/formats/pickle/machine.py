"""Interprets pickles of protocols 0 to 5 without importing or calling anything.

The instructions are described in CPython's ``Lib/pickletools.py``. GLOBAL only makes a GlobalName. REDUCE, NEWOBJ, INST
and OBJ only make an OpaqueResult, except for the few names that ``rebuild`` maps to a function of ckptsurgeon. BUILD
only stores the state. A persistent id is passed to the function ``persistent``. There is a limit for everything that a
file could make large.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import CheckpointError, UnsafeError
from ..base import limits
from ._opcodes import NAMES, PickleOpcodes
from .shortcut import SHORT_PUTS, plain_tensors
from .state import BARE, NO_EDGE, Rebuild, TruncatedError, UnknownOpcodeError, bounds
from .values import GlobalName, OpaqueResult, set_items

__all__ = ["TABLE", "PickleMachine", "Rebuild", "load"]

_UINT2 = struct.Struct("<H")
_UINT4 = struct.Struct("<I")


class PickleMachine(PickleOpcodes):
    """Interprets one pickle; after ``run``, ``position`` is the offset of its end (another pickle may begin there)."""

    def run(self) -> Any:
        """Interpret the pickle up to its STOP instruction, and return its value.

        Raises FormatError if the pickle is malformed, UnsafeError if it exceeds a limit.
        """
        try:
            return self._loop()
        except CheckpointError:
            raise
        except IndexError:
            why = "ends too early" if self.position >= len(self.data) else "takes from an empty stack"
            raise self._broken(why) from None
        except struct.error:
            raise self._broken("ends too early") from None
        except TruncatedError as error:
            raise self._broken(str(error)) from None
        except UnknownOpcodeError as error:
            raise self._broken(f"has an unknown opcode 0x{error.args[0]:02x}") from None
        except KeyError as error:
            raise self._broken(f"uses the memo entry {error}, which does not exist") from None
        except (ValueError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
            raise self._broken(f"is malformed: {error}") from None
        except (RecursionError, MemoryError):
            raise UnsafeError(
                "the pickle needs more memory or stack than is available.", rule="pickle resources"
            ) from None

    def _loop(self) -> Any:
        """Interpret the instructions, and return the value of the pickle.

        Frequent instructions are handled here, all others by the methods in ``TABLE``.
        """
        data, memo, position = self.data, self.memo, self.position
        near, far = memo.near, memo.far
        stack, marks, persistent = self.stack, self.marks, self._persistent
        deepest, most_calls, calls = limits.PICKLE_DEPTH, self.most_calls, 0
        most_rare, rare, room, edge = self.most_rare, 0, self.room, self.edge
        unpack4, unpack2 = _UINT4.unpack_from, _UINT2.unpack_from
        try:
            for _ in range(self.most_ops):
                if position >= edge:
                    self._leave_frame(position)
                    edge = NO_EDGE
                op = data[position]
                position += 1
                if op == 0x72:  # LONG_BINPUT
                    index = unpack4(data, position)[0]
                    position += 4
                    if index == len(near) and not far:
                        near.append(stack[-1])
                    else:
                        memo.put(index, stack[-1])
                elif op == 0x68:  # BINGET
                    value = memo.get(data[position])
                    position += 1
                    taken = None
                    if type(value) is GlobalName and value.makes_tensors and len(near) >= SHORT_PUTS and not far:
                        taken = plain_tensors(data, position, near, persistent, value, edge=edge)
                    if taken is None:
                        stack.append(value)
                        continue
                    values, position, length = taken
                    calls, room = calls + len(values) + 1, room - length
                    if calls > most_calls:
                        raise self._too_many_calls()
                    if room < 0:
                        raise self._too_much_text()
                    stack += values
                elif op == 0x4B:  # BININT1
                    stack.append(data[position])
                    position += 1
                elif op == 0x28:  # MARK
                    if len(marks) >= deepest:
                        raise UnsafeError("the pickle is nested too deeply.", rule="pickle depth")
                    marks.append(stack)
                    stack = []
                elif op == 0x74:  # TUPLE
                    items = tuple(stack)
                    stack = marks.pop()
                    stack.append(items)
                elif op == 0x58:  # BINUNICODE
                    length = unpack4(data, position)[0]
                    position += 4 + length
                    text = data[position - length : position]
                    if len(text) != length:
                        raise IndexError
                    room -= length
                    if room < 0:
                        raise self._too_much_text()
                    stack.append(text.decode("utf-8", "surrogatepass"))
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    function = stack[-1]
                    if type(function) is GlobalName and function.ours is not None and type(args) is tuple:
                        calls += 1
                        if calls > most_calls:
                            raise self._too_many_calls()
                        stack[-1] = function.ours(*args)
                    else:
                        stack[-1] = self._called(function, args)
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif op == 0x71:  # BINPUT
                    memo.put(data[position], stack[-1])
                    position += 1
                elif op == 0x94:  # MEMOIZE
                    rare += 1
                    if rare > most_rare:
                        break
                    if far:
                        memo.put(len(memo), stack[-1])
                    else:
                        near.append(stack[-1])
                elif op == 0x51:  # BINPERSID
                    stack[-1] = persistent(stack[-1])
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x86:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                elif op == 0x4D:  # BININT2
                    stack.append(unpack2(data, position)[0])
                    position += 2
                elif op == 0x6A:  # LONG_BINGET
                    stack.append(memo.get(unpack4(data, position)[0]))
                    position += 4
                elif op == 0x2E:  # STOP
                    if marks:
                        raise self._broken("stops inside a mark")
                    if edge not in (NO_EDGE, position):
                        raise self._broken("stops inside a frame")
                    return stack.pop()
                else:
                    rare += 1
                    if rare > most_rare:
                        break
                    raw = b""
                    if op not in BARE:
                        begin, position = bounds(data, position - 1, len(data))
                        raw = data[begin:position]
                    self.position, self.stack, self.room = position, stack, room
                    TABLE[op](self, raw)
                    position, stack, room, edge = self.position, self.stack, self.room, self.edge
        finally:
            self.position = position
        most, kind = (most_rare, " of rare kinds") if rare > most_rare else (self.most_ops, "")
        raise UnsafeError(f"the pickle has more instructions{kind} than the limit of {most}.", rule="pickle length")

    # Instructions that nearly every pickle has, but not often; ``raw`` is the operand.

    def op_proto(self, raw: bytes) -> None:
        """PROTO: check the number of the protocol."""
        if raw[0] > 5:
            raise self._broken(f"has the unknown protocol {raw[0]}; 5 is the newest")

    def op_global(self, raw: bytes) -> None:
        """GLOBAL: push the name of a class or function."""
        module, name, _ = raw.split(b"\n")
        self._name(self._text(module, errors="strict"), self._text(name, errors="strict"))

    def op_empty_dict(self, raw: bytes) -> None:
        """EMPTY_DICT: push a new dict."""
        self.stack.append({})

    def op_dict(self, raw: bytes) -> None:
        """DICT: push a dict of the items since the last mark."""
        items = self._pop_mark()
        made: dict[Any, Any] = {}
        self._update(made, items)
        self.stack.append(made)

    def op_setitem(self, raw: bytes) -> None:
        """SETITEM: put one item into the dict on the stack."""
        value = self.stack.pop()
        key = self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def op_setitems(self, raw: bytes) -> None:
        """SETITEMS: put the items since the last mark into the dict below it."""
        items = self._pop_mark()
        self._update(self.stack[-1], items)

    def _update(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise self._broken("has a key without a value")
        if isinstance(target, OpaqueResult):
            target.keep(items)
        elif isinstance(target, dict):
            set_items(target, zip(items[::2], items[1::2], strict=True))
        else:
            raise self._broken(f"sets items of a {type(target).__name__}")


TABLE: Mapping[int, Callable[[PickleMachine, bytes], None]] = {
    op: getattr(PickleMachine, f"op_{name}") for name, ops in NAMES.items() for op in ops
}
"""{opcode: method}; the most frequent instructions are not here, but in ``PickleMachine._loop``."""


def load(data: bytes, *, rebuild: Rebuild, persistent: Callable[[Any], object], stored: int = 0) -> Any:
    """Return the value of the pickle ``data``, without importing or calling anything that it refers to.

    ``rebuild`` maps (module, name) of a function in the pickle to ckptsurgeon's function that is called in its place.
    ``persistent`` is a function that returns the object for a persistent id. ``stored`` is the number of bytes of the
    pickle in the file; limits are higher for a large pickle.
    """
    return PickleMachine(data, rebuild=rebuild, persistent=persistent, stored=stored).run()
