"""Implements the rarest instructions of a pickle, with their names in CPython's ``Lib/pickletools.py``."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Mapping
from typing import Any

from ...errors import UnsafeError
from ..base import limits
from .state import NO_EDGE, MachineState
from .values import GlobalName, OpaqueResult, PickledFrozenSet, PickledSet

__all__ = ["NAMES", "PickleOpcodes"]

_DOUBLE = struct.Struct(">d")


class PickleOpcodes(MachineState):
    """Implements each rare instruction by one method.

    ``raw`` is the operand of the instruction. If the operand is a line of text, ``raw`` includes the newline.
    """

    def op_frame(self, raw: bytes) -> None:
        length = int.from_bytes(raw, "little")
        if self.edge < NO_EDGE:
            raise self._broken("has a frame inside another frame")
        if length > len(self.data) - self.position:
            raise self._broken("has a frame beyond its end")
        self.edge = self.position + length

    def op_pop(self, raw: bytes) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def op_pop_mark(self, raw: bytes) -> None:
        self._pop_mark()

    def op_dup(self, raw: bytes) -> None:
        self.stack.append(self.stack[-1])

    def op_int(self, raw: bytes) -> None:
        line = self._line(0x49, raw)
        self.stack.append(line == b"01" if line in (b"00", b"01") else int(line))

    def op_long(self, raw: bytes) -> None:
        self.stack.append(int(self._line(0x4C, raw).removesuffix(b"L")))

    def op_binint(self, raw: bytes) -> None:
        self.stack.append(int.from_bytes(raw, "little", signed=True))

    def op_long_bytes(self, raw: bytes) -> None:
        if len(raw) > limits.NUMBER_BYTES:
            raise UnsafeError(
                f"the pickle has an integer of {len(raw)} bytes, more than the limit of {limits.NUMBER_BYTES}.",
                rule="integer size",
            )
        self.stack.append(int.from_bytes(raw, "little", signed=True))

    def op_float(self, raw: bytes) -> None:
        if len(raw) > limits.NUMBER_BYTES:
            raise UnsafeError(
                f"the pickle has a number of {len(raw)} bytes, more than the limit of {limits.NUMBER_BYTES}.",
                rule="number size",
            )
        self.stack.append(float(self._line(0x46, raw)))

    def op_binfloat(self, raw: bytes) -> None:
        self.stack.append(_DOUBLE.unpack(raw)[0])

    def op_none(self, raw: bytes) -> None:
        self.stack.append(None)

    def op_newtrue(self, raw: bytes) -> None:
        self.stack.append(True)

    def op_string(self, raw: bytes) -> None:
        self.stack.append(self._old_text(codecs.escape_decode(self._line(0x53, raw)[1:-1])[0]))

    def op_old_text(self, raw: bytes) -> None:
        self.stack.append(self._old_text(raw))

    def op_bytes(self, raw: bytes) -> None:
        self.stack.append(raw)

    def op_unicode(self, raw: bytes) -> None:
        self.stack.append(self._text(raw[:-1], "raw-unicode-escape", "strict"))

    def op_text(self, raw: bytes) -> None:
        self.stack.append(self._text(raw))

    def op_empty_list(self, raw: bytes) -> None:
        self.stack.append([])

    def op_list(self, raw: bytes) -> None:
        items = self._pop_mark()
        self.stack.append(items)

    def op_append(self, raw: bytes) -> None:
        item = self.stack.pop()
        self._extend([item])

    def op_appends(self, raw: bytes) -> None:
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any], *, in_set: bool = False) -> None:
        target = self.stack[-1]
        if isinstance(target, OpaqueResult):
            target.keep(items)
        elif type(target) is (PickledSet if in_set else list):
            target.extend(items)
        else:
            raise self._broken(f"appends to a {type(target).__name__}")

    def op_tuple3(self, raw: bytes) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack[-1] = (self.stack[-1], middle, last)

    def op_empty_set(self, raw: bytes) -> None:
        self.stack.append(PickledSet())

    def op_additems(self, raw: bytes) -> None:
        items = self._pop_mark()
        self._extend(items, in_set=True)

    def op_frozenset(self, raw: bytes) -> None:
        items = self._pop_mark()
        self.stack.append(PickledFrozenSet(items))

    def op_put(self, raw: bytes) -> None:
        self.memo.put(int(self._line(0x70, raw)), self.stack[-1])

    def op_get(self, raw: bytes) -> None:
        self.stack.append(self.memo.get(int(self._line(0x67, raw))))

    def op_stack_global(self, raw: bytes) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self._broken("refers to a class or function by a name that is not a string")
        self._name(module, name)

    def op_extension(self, raw: bytes) -> None:
        self._name("copyreg.extension", str(int.from_bytes(raw, "little", signed=len(raw) == 4)))

    def op_inst(self, raw: bytes) -> None:
        module, name, _ = raw.split(b"\n")
        names = self._text(module, "ascii", "strict"), self._text(name, "ascii", "strict")
        args = tuple(self._pop_mark())
        self._name(*names)
        self.stack[-1] = self._called(self.stack[-1], args)

    def op_obj(self, raw: bytes) -> None:
        items = self._pop_mark()
        self.stack.append(self._called(items[0], tuple(items[1:])))

    def op_newobj(self, raw: bytes) -> None:
        args, made = self.stack.pop(), self.stack[-1]
        ours = made.ours if type(made) is GlobalName and type(args) is tuple else None
        self.calls += 1
        if self.calls > self.most_calls:
            raise self._too_many_calls()
        self.stack[-1] = ours(*args) if ours else self._called(made, args)

    def op_newobj_ex(self, raw: bytes) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        if keywords is None or isinstance(keywords, (bool, int, float, str, bytes, bytearray, tuple, list)):
            raise self._broken("makes an object with keyword arguments that are not a dict")
        self.stack[-1] = self._called(self.stack[-1], args)

    def op_build(self, raw: bytes) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, OpaqueResult):
            target.state = state
        elif hasattr(target, "build"):
            target.build(state)
        elif not self._names:
            raise self._broken("sets the state of plain data (BUILD)")

    def op_persid(self, raw: bytes) -> None:
        self.stack.append(self._persistent(raw[:-1].decode("ascii")))

    def op_buffer(self, raw: bytes) -> None:
        raise UnsafeError(
            "the pickle needs data that is not in the file (out-of-band buffers).", rule="out-of-band buffers"
        )


NAMES: Mapping[str, bytes] = {
    "proto": b"\x80", "frame": b"\x95", "pop": b"0", "pop_mark": b"1", "dup": b"2",
    "int": b"I", "long": b"L", "binint": b"J", "long_bytes": b"\x8a\x8b",
    "float": b"F", "binfloat": b"G", "none": b"N", "newtrue": b"\x88",
    "string": b"S", "old_text": b"TU", "bytes": b"BC\x8e\x96", "unicode": b"V", "text": b"\x8c\x8d",
    "empty_list": b"]", "list": b"l", "append": b"a", "appends": b"e",
    "empty_dict": b"}", "dict": b"d", "setitem": b"s", "setitems": b"u", "tuple3": b"\x87",
    "empty_set": b"\x8f", "additems": b"\x90", "frozenset": b"\x91",
    "put": b"p", "get": b"g",
    "global": b"c", "stack_global": b"\x93", "extension": b"\x82\x83\x84",
    "inst": b"i", "obj": b"o", "newobj": b"\x81", "newobj_ex": b"\x92", "build": b"b",
    "persid": b"P", "buffer": b"\x97\x98",
}  # fmt: skip
"""{name of a method without ``op_``: opcodes of its instructions}; some of the methods are in ``PickleMachine``."""
