"""The effects of the rarer pickle opcodes on the decoder's state, under their names in ``Lib/pickletools.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ....formats.pickle.state import spelling
from .state import NO_EDGE, PickleState, RestartError
from .values import KEPT, UNKNOWN, ImportedName, is_dict

__all__ = ["TABLE", "Opcodes"]

_NEWEST = 5
_LONGEST_STRING = 0x7FFFFFFF


class Opcodes(PickleState):
    """Has a method for each kind of rare instruction; ``begin`` and ``end`` are the bounds of the operand."""

    def op_scalar(self, begin: int, end: int) -> None:
        self.stack.append(self.position)

    def op_line(self, begin: int, end: int) -> None:
        op = self.data[self.position]
        how = spelling(op, self.data[begin : end - 1])
        if how == "not":
            self.stop("has a line that is not a valid value")
        elif how == "apart":
            self.part("a line has its value in a form that no pickler writes")
        if op == 0x53:  # STRING
            self.maybe_nested(begin, end)
        self.stack.append(self.position)

    def op_proto(self, begin: int, end: int) -> None:
        if self.data[begin] > _NEWEST:
            self.flaw(f"has protocol {self.data[begin]}, but the newest is {_NEWEST}")

    def op_frame(self, begin: int, end: int) -> None:
        length = int.from_bytes(self.data[begin:end], "little")
        if self.edge < NO_EDGE:
            self.tear("a frame begins inside another")
        if length > self.total - end:
            self.flaw("has a frame that reaches beyond its end")
            self.overrun = True
        else:
            self.edge = end + length

    def op_text(self, begin: int, end: int) -> None:
        if end - begin > _LONGEST_STRING and self.data[self.position] == 0x54:  # BINSTRING
            self.part("a string has a negative length, or one over 2 GiB")
        self.maybe_nested(begin, end)
        self.stack.append(self.position)

    def op_bytes(self, begin: int, end: int) -> None:
        self.maybe_nested(begin, end)
        self.stack.append(self.position)

    def op_pop(self, begin: int, end: int) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self, begin: int, end: int) -> None:
        self.pop_mark()

    def op_dup(self, begin: int, end: int) -> None:
        self.stack.append(self.stack[-1])

    def op_empty_set(self, begin: int, end: int) -> None:
        self.stack.append(["set("])

    def op_list(self, begin: int, end: int) -> None:
        items = self.pop_mark()
        self.stack.append(["[", *items[: KEPT - 1]])

    def op_dict(self, begin: int, end: int) -> None:
        items = self.pop_mark()
        self.stack.append(["{", *items[: KEPT - 1]])

    def op_frozenset(self, begin: int, end: int) -> None:
        items = self.pop_mark()
        self.stack.append(["frozenset(", *items[: KEPT - 1]])

    def op_append(self, begin: int, end: int) -> None:
        self.add([self.stack.pop()])

    def op_setitem(self, begin: int, end: int) -> None:
        value = self.stack.pop()
        self.add([self.stack.pop(), value])

    def op_additems(self, begin: int, end: int) -> None:
        items = self.pop_mark()
        if not items:
            self.add_nothing(self.stack[-1], "set(")
        self.add(items)

    def op_tuple3(self, begin: int, end: int) -> None:
        items = self.stack.pop(-3), self.stack.pop(-2), self.stack.pop()
        self.stack.append(items)

    def op_put(self, begin: int, end: int) -> None:
        self.memo[self.index(begin, end)] = self.stack[-1]

    def op_get(self, begin: int, end: int) -> None:
        value = self.memo.get(self.index(begin, end))
        if self.skipped and not isinstance(value, ImportedName):
            raise RestartError
        if value is None:
            raise KeyError
        self.stack.append(value)

    def op_global(self, begin: int, end: int) -> None:
        self.stack.append(self.name(*self.lines(begin, end)))

    def op_stack_global(self, begin: int, end: int) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.name(self.text(module), self.text(name)))

    def op_extension(self, begin: int, end: int) -> None:
        self.stack.append(self.extension(int.from_bytes(self.data[begin:end], "little")))

    def op_inst(self, begin: int, end: int) -> None:
        # the import is counted first, because Python's reader imports even if there is no mark
        function = self.name(*self.lines(begin, end))
        items = tuple(self.pop_mark())
        self.stack.append(self.call(function, items, self.position))

    def op_obj(self, begin: int, end: int) -> None:
        items = self.pop_mark()
        self.stack.append(self.call(items[0], tuple(items[1:]), self.position))

    def op_newobj(self, begin: int, end: int) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args, self.position)

    def op_newobj_ex(self, begin: int, end: int) -> None:
        named, args = self.stack.pop(), self.stack.pop()
        if not is_dict(self.data, named):
            self.part("keyword arguments are not a dictionary")
        given = (*args, named) if isinstance(args, tuple) else args
        self.stack[-1] = self.call(self.stack[-1], given, self.position)

    def op_build(self, begin: int, end: int) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def op_persid(self, begin: int, end: int) -> None:
        self.stack.append(self.persistent(self.position, self.position))

    def op_next_buffer(self, begin: int, end: int) -> None:
        self.flaw("needs an out-of-band buffer, which is not in the file")
        self.stack.append(UNKNOWN)

    def op_readonly_buffer(self, begin: int, end: int) -> None:
        pass


_NAMES: Mapping[str, bytes] = {
    "line": b"FILS", "scalar": b"JGKMN)\x88\x89\x8a\x8b", "text": b"UTVX\x8c\x8d", "bytes": b"BC\x8e\x96",
    "proto": b"\x80", "frame": b"\x95", "pop": b"0", "pop_mark": b"1", "dup": b"2",
    "empty_set": b"\x8f", "list": b"l", "dict": b"d", "frozenset": b"\x91",
    "append": b"a", "setitem": b"s", "additems": b"\x90", "tuple3": b"\x87", "put": b"p", "get": b"gj",
    "global": b"c", "stack_global": b"\x93", "extension": b"\x82\x83\x84", "inst": b"i", "obj": b"o",
    "newobj": b"\x81", "newobj_ex": b"\x92", "build": b"b", "persid": b"P",
    "next_buffer": b"\x97", "readonly_buffer": b"\x98",
}  # fmt: skip

TABLE: Mapping[int, Callable[[Opcodes, int, int], None]] = {
    op: getattr(Opcodes, f"op_{name}") for name, ops in _NAMES.items() for op in ops
}
"""The method for each opcode; ``Machine`` handles the most frequent opcodes itself."""
