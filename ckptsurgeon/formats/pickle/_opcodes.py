"""Implements the rarer instructions of a pickle, by their names in CPython's ``Lib/pickletools.py``."""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from math import inf
from typing import Any

from ...errors import UnsafeError
from ..base import limits
from .state import NO_EDGE, MachineState
from .values import GlobalName, Opaque, PickledFrozenSet, PickledSet, set_items

__all__ = ["TABLE", "PickleOpcodes", "UnknownOpcodeError"]

_FLOAT = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|nan)")
_DOUBLE = struct.Struct(">d")
_INT4 = struct.Struct("<i")
_UINT2 = struct.Struct("<H")
_UINT4 = struct.Struct("<I")
_UINT8 = struct.Struct("<Q")


class PickleOpcodes(MachineState):
    """A method for each instruction, by its name in pickletools."""

    def op_proto(self) -> None:
        version = self._bytes(1)[0]
        if version > 5:
            raise self._broken(f"is of protocol {version}; 5 is the newest")

    def op_frame(self) -> None:
        length = self._number(_UINT8)
        if self.edge < NO_EDGE:
            raise self._broken("has a frame inside another")
        if length > len(self.data) - self.position:
            raise self._broken("has a frame beyond its end")
        self.edge = self.position + length

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def op_pop_mark(self) -> None:
        self._pop_mark()

    def op_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def op_int(self) -> None:
        line = self._line()
        self.stack.append(line == b"01" if line in (b"00", b"01") else self._spelled(line))

    def op_long(self) -> None:
        self.stack.append(self._spelled(self._line().removesuffix(b"L")))

    def op_binint(self) -> None:
        self.stack.append(self._number(_INT4))

    def op_long1(self) -> None:
        self.stack.append(self._integer(self._bytes(self._bytes(1)[0])))

    def op_long4(self) -> None:
        length = self._number(_INT4)
        if length < 0:
            raise self._broken("has an integer of negative length")
        self.stack.append(self._integer(self._bytes(length)))

    def op_float(self) -> None:
        line = self._line()
        if len(line) > limits.NUMBER_BYTES:
            raise UnsafeError(f"the pickle holds a number of {len(line)} bytes.", rule="number size")
        number = float(line) if _FLOAT.fullmatch(line) else inf
        if number in (inf, -inf) and line.lstrip(b"+-") != b"inf":
            raise self._broken("has a number in a form that no pickler writes")
        self.stack.append(number)

    def op_binfloat(self) -> None:
        self.stack.append(self._number(_DOUBLE))

    def op_none(self) -> None:
        self.stack.append(None)

    def op_newtrue(self) -> None:
        self.stack.append(True)

    def op_string(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise self._broken("has a string without quotes")
        self.stack.append(self._old_text(codecs.escape_decode(line[1:-1])[0]))

    def op_binstring(self) -> None:
        length = self._number(_INT4)
        if length < 0:
            raise self._broken("has a string of negative length")
        self.stack.append(self._old_text(self._bytes(length)))

    def op_short_binstring(self) -> None:
        self.stack.append(self._old_text(self._bytes(self._bytes(1)[0])))

    def op_binbytes(self) -> None:
        self.stack.append(self._bytes(self._number(_UINT4)))

    def op_short_binbytes(self) -> None:
        self.stack.append(self._bytes(self._bytes(1)[0]))

    def op_binbytes8(self) -> None:
        self.stack.append(self._bytes(self._number(_UINT8)))

    def op_unicode(self) -> None:
        self.stack.append(self._text(self._line(), "raw-unicode-escape", "strict"))

    def op_short_binunicode(self) -> None:
        self.stack.append(self._text(self._bytes(self._bytes(1)[0])))

    def op_binunicode8(self) -> None:
        self.stack.append(self._text(self._bytes(self._number(_UINT8))))

    def op_empty_list(self) -> None:
        self.stack.append([])

    def op_list(self) -> None:
        items = self._pop_mark()
        self.stack.append(items)

    def op_append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def op_appends(self) -> None:
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any], *, in_set: bool = False) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.keep(items)
        elif type(target) is (PickledSet if in_set else list):
            target.extend(items)
        else:
            raise self._broken(f"appends to a {type(target).__name__}")

    def op_empty_dict(self) -> None:
        self.stack.append({})

    def op_dict(self) -> None:
        items = self._pop_mark()
        made: dict[Any, Any] = {}
        self._update(made, items)
        self.stack.append(made)

    def op_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def op_setitems(self) -> None:
        items = self._pop_mark()
        self._update(self.stack[-1], items)

    def _update(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise self._broken("has a key without a value")
        if isinstance(target, Opaque):
            target.keep(items)
        elif isinstance(target, dict):
            set_items(target, zip(items[::2], items[1::2], strict=True))
        else:
            raise self._broken(f"sets items of a {type(target).__name__}")

    def op_tuple3(self) -> None:
        last, middle = self.stack.pop(), self.stack.pop()
        self.stack[-1] = (self.stack[-1], middle, last)

    def op_empty_set(self) -> None:
        self.stack.append(PickledSet())

    def op_additems(self) -> None:
        items = self._pop_mark()
        self._extend(items, in_set=True)

    def op_frozenset(self) -> None:
        items = self._pop_mark()
        self.stack.append(PickledFrozenSet(items))

    def op_put(self) -> None:
        self.memo.put(self._spelled(self._line()), self.stack[-1])

    def op_get(self) -> None:
        self.stack.append(self.memo.get(self._spelled(self._line())))

    def op_memoize(self) -> None:
        self.memo.put(len(self.memo), self.stack[-1])

    def op_global(self) -> None:
        self._name(self._text(self._line(), errors="strict"), self._text(self._line(), errors="strict"))

    def op_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self._broken("names a global that is not a text")
        self._name(module, name)

    def op_ext1(self) -> None:
        self._name("copyreg.extension", str(self._bytes(1)[0]))

    def op_ext2(self) -> None:
        self._name("copyreg.extension", str(self._number(_UINT2)))

    def op_ext4(self) -> None:
        self._name("copyreg.extension", str(self._number(_INT4)))

    def op_inst(self) -> None:
        module, name = self._text(self._line(), "ascii", "strict"), self._text(self._line(), "ascii", "strict")
        args = tuple(self._pop_mark())
        self._name(module, name)
        self.stack[-1] = self._called(self.stack[-1], args)

    def op_obj(self) -> None:
        items = self._pop_mark()
        self.stack.append(self._called(items[0], tuple(items[1:])))

    def op_newobj(self) -> None:
        args, made = self.stack.pop(), self.stack[-1]
        ours = made.ours if type(made) is GlobalName and type(args) is tuple else None
        self.calls += 1
        if self.calls > self.most_calls:
            raise self._too_many_calls()
        self.stack[-1] = ours(*args) if ours else self._called(made, args)

    def op_newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        if keywords is None or isinstance(keywords, (bool, int, float, str, bytes, bytearray, tuple, list)):
            raise self._broken("makes an object with keyword arguments that are not a dictionary")
        self.stack[-1] = self._called(self.stack[-1], args)

    def op_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state
        elif hasattr(target, "build"):
            target.build(state)
        elif not self._names:
            raise self._broken("gives a state to plain data")

    def op_persid(self) -> None:
        self.stack.append(self._persistent(self._line().decode("ascii")))

    def op_buffer(self) -> None:
        raise UnsafeError("the pickle needs data from outside the file.", rule="out-of-band buffers")

    def op_unknown(self) -> None:
        raise UnknownOpcodeError


class UnknownOpcodeError(LookupError):
    """A byte that is not an instruction of any protocol."""


def _table() -> list[Callable[[PickleOpcodes], None]]:
    names = {
        0x80: "proto", 0x95: "frame", 0x30: "pop", 0x31: "pop_mark", 0x32: "dup",
        0x49: "int", 0x4C: "long", 0x4A: "binint", 0x8A: "long1", 0x8B: "long4",
        0x46: "float", 0x47: "binfloat", 0x4E: "none", 0x88: "newtrue",
        0x53: "string", 0x54: "binstring", 0x55: "short_binstring",
        0x42: "binbytes", 0x43: "short_binbytes", 0x8E: "binbytes8", 0x96: "binbytes8",
        0x56: "unicode", 0x8C: "short_binunicode", 0x8D: "binunicode8",
        0x5D: "empty_list", 0x6C: "list", 0x61: "append", 0x65: "appends",
        0x7D: "empty_dict", 0x64: "dict", 0x73: "setitem", 0x75: "setitems", 0x87: "tuple3",
        0x8F: "empty_set", 0x90: "additems", 0x91: "frozenset",
        0x70: "put", 0x67: "get", 0x94: "memoize",
        0x63: "global", 0x93: "stack_global", 0x82: "ext1", 0x83: "ext2", 0x84: "ext4",
        0x69: "inst", 0x6F: "obj", 0x81: "newobj", 0x92: "newobj_ex", 0x62: "build",
        0x50: "persid", 0x97: "buffer", 0x98: "buffer",
    }  # fmt: skip
    return [getattr(PickleOpcodes, f"op_{names.get(op, 'unknown')}") for op in range(256)]


TABLE = _table()
"""The instructions by their byte."""
