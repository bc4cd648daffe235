"""Decodes one pickle without executing it: finds the names that it would import, and the calls of these names.

The stream is divided into instructions as every pickle reader does it (``operands``). At a fault that would stop a
reader, such as an empty stack, decoding records the fault and continues, so that no later import is missed. The decoder
distinguishes only plain data, containers and imported names. It keeps the contents of containers only to display them.
"""

from __future__ import annotations

import re
import struct
from operator import length_hint

from ....formats.base import limits
from ....formats.pickle.state import MoreError, TruncatedError, bounds, is_marked
from ..context import Budget
from ._opcodes import TABLE
from .guess import BEGINS, MAGICS, SHORTEST, imports_something, inner_bytes
from .shortcut import LITERAL, LITERALS, FastPathMachine, rows_of
from .state import NO_EDGE, RestartError
from .values import KEPT, UNKNOWN, ImportedName

__all__ = ["Machine"]

_UINT4 = struct.Struct("<I")
_LITERALS = re.compile(rb"%b{1,4000}+[tleud\x90\x91]" % LITERAL, re.DOTALL)
"""Pattern of numbers and constants after a mark, such as the shape of a tensor; they are decoded in one step."""
_MAKES = frozenset(b"tld\x91")
"""Instructions that make a new value from the items after a mark: TUPLE, LIST, DICT, FROZENSET."""


class Machine(FastPathMachine):
    """Decodes one pickle from ``position`` on. ``data`` may be only the beginning of the file's ``total`` bytes.

    After ``run``, ``stopped`` is true if the pickle reached its instruction STOP, ``fault`` is the first fault, and
    ``position`` is the end of the pickle. ``run`` raises MoreError if the pickle does not end within ``data``, and
    SpentError if a limit is reached.
    """

    def run(self) -> None:
        """Decode the pickle up to its instruction STOP, or up to the point at which no reader can continue."""
        self._run()
        if self.memo and max(self.memo) > limits.PICKLE_MEMO:
            self.part("a memo index is so large that Python's reader in C would allocate gigabytes")

    def _run(self) -> None:
        while True:
            try:
                self._loop()
                return
            except (IndexError, KeyError) as error:  # empty stack, missing memo entry, unknown opcode, or end of data
                try:
                    self._recover(isinstance(error, IndexError))
                except TruncatedError as end:
                    self.flaw(str(end))
                    return
                except KeyError:
                    self.flaw(f"has an unknown opcode 0x{self.data[self.position]:02x}")
                    return
            except TruncatedError as end:
                self._name_cut_off()
                self.flaw(str(end))
                return

    def _name_cut_off(self) -> None:
        """Count the import of a name that a truncated file ends with, so that the name has no newline.

        Python's reader imports such a name without its last character.
        """
        begin = self.position + 1
        if len(self.data) < self.total or self.data[begin - 1 : begin] not in (b"c", b"i"):
            return
        middle = self.data.find(b"\n", begin) + 1
        if not middle:
            self.name(self.line(begin, len(self.data) - 1), "")
        elif self.data.find(b"\n", middle) < 0:
            self.name(self.line(begin, middle - 1), self.line(middle, len(self.data) - 1))
        else:
            return
        self.part("the file ends inside the name of an import")

    def maybe_nested(self, begin: int, end: int) -> None:
        """Record a string or byte string if its content looks like a pickle or an archive.

        ``begin`` and ``end`` are the bounds of the string in ``data``.
        """
        data = self.data
        if self.level >= limits.SCAN_DEPTH or end - begin < SHORTEST or data[begin] not in BEGINS:
            return
        raw = inner_bytes(data, self.position, begin, end)
        if MAGICS.match(raw) or self._matters(raw):
            if len(self.nested) >= limits.SCAN_NESTED:
                raise Budget.spent(f"over {limits.SCAN_NESTED} pickles in one pickle")
            self.nested.append((self.position, raw))

    def _matters(self, raw: bytes) -> bool:
        """Return whether bytes are pickles that import something, or that contain pickles which import something.

        Pickles without imports do not matter, and arbitrary binary data can look like them.
        """
        if not is_marked(raw) and not any(sign in raw for sign in (b"\n", b"\x93", b"\x82", b"\x83", b"\x84")):
            return False
        at = 0
        while at < len(raw):
            trial = Machine(raw, self.budget, names={}, start=at, level=self.level + 1)
            trial.run()
            if trial.nested or trial.torn or imports_something(trial, marked=is_marked(raw[at : at + 2])):
                return True
            at = trial.position if trial.stopped and not trial.fault else len(raw)
        return False

    def _recover(self, empty: bool) -> None:
        """Record that an instruction needed a missing value, and continue after this instruction.

        ``empty`` is true if the stack was empty, false if a memo entry did not exist.
        """
        if self.position >= len(self.data):
            if len(self.data) < self.total:
                raise MoreError
            raise TruncatedError("ends without a STOP")
        _, behind = bounds(self.data, self.position, self.total)
        self.stop("pops from an empty stack" if empty else "reads a memo entry that it never stored")
        self.position = behind
        self.stack.append(UNKNOWN)

    def _loop(self) -> None:
        data, memo, budget, at = self.data, self.memo, self.budget, self.position
        stack, marks, unpack4, hurried = self.stack, self.marks, _UINT4.unpack_from, self.hurried
        edge = self.edge
        taken, rows = iter(range(budget.ops)), rows_of(data[self.start + 1 : self.start + 2])
        ahead, dictionaries, tuples = rows.ahead, rows.dictionaries.match, rows.tuples.match
        try:
            for _ in taken:
                if at >= edge:
                    self.leave_frame(at)
                    edge = NO_EDGE
                op = data[at]
                if op == 0x72:  # LONG_BINPUT
                    memo[unpack4(data, at + 1)[0]] = stack[-1]
                    at += 5
                elif op == 0x94:  # MEMOIZE
                    if self.skipped:
                        raise RestartError
                    memo[len(memo)] = stack[-1]
                    at += 1
                elif op == 0x68:  # BINGET
                    value = memo[data[at + 1]]
                    at += 2
                    if hurried and type(value) is ImportedName and value.makes_tensors:
                        at = self.take_tensors(value, at, stack)
                    else:
                        stack.append(value)
                elif op == 0x58 or op == 0x8C:  # BINUNICODE, SHORT_BINUNICODE
                    begin = at + 5 if op == 0x58 else at + 2
                    end = begin + (unpack4(data, at + 1)[0] if op == 0x58 else data[at + 1])
                    if end > len(data):
                        bounds(data, at, self.total)
                    if end - begin > 5 and data[begin] in BEGINS:
                        self.position = at
                        self.maybe_nested(begin, end)
                    stack.append(at)
                    at = end
                elif op == 0x4B:  # BININT1
                    stack.append(at)
                    at += 2
                elif op == 0x28:  # MARK
                    found = _LITERALS.match(data, at + 1, edge)
                    if found is not None:
                        if data[found.end() - 1] in _MAKES:
                            stack.append(at)
                        at = found.end()
                        continue
                    if len(marks) >= limits.SCAN_MARKS:
                        raise Budget.spent(f"a pickle that opens over {limits.SCAN_MARKS} marks")
                    marks.append(stack)
                    stack = []
                    at += 1
                    if data[at : at + 1] in LITERALS and tuples(data, at, edge):
                        at = self.take_rows(rows, at, stack)
                elif op == 0x74:  # TUPLE
                    items = tuple(stack)
                    stack = marks.pop()
                    stack.append(items)
                    at += 1
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    function = stack[-1]
                    if type(function) is ImportedName and function.quiet and type(args) is tuple:
                        function.called += 1
                        stack[-1] = at
                    else:
                        stack[-1] = self.call(function, args, at)
                    at += 1
                elif op == 0x71:  # BINPUT
                    memo[data[at + 1]] = stack[-1]
                    at += 2
                elif op == 0x51:  # BINPERSID
                    stack[-1] = self.persistent(stack[-1], at)
                    at += 1
                elif op == 0x89 or op == 0x88 or op == 0x4E or op == 0x29:  # NEWFALSE, NEWTRUE, NONE, EMPTY_TUPLE
                    stack.append(at)
                    at += 1
                elif op == 0x47:  # BINFLOAT
                    stack.append(at)
                    at += 9
                elif op == 0x4D:  # BININT2
                    stack.append(at)
                    at += 3
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                    at += 1
                elif op == 0x86:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                    at += 1
                elif op == 0x75 or op == 0x65:  # SETITEMS, APPENDS
                    values = stack
                    stack = marks.pop()
                    target = stack[-1]
                    if not values and op == 0x65:
                        self.position = at
                        self.add_nothing(target, "[")
                    if type(target) is list:
                        if len(target) < KEPT:
                            target += values[: KEPT - len(target)]
                    else:
                        self.change(target)
                    at += 1
                elif op == 0x5D:  # EMPTY_LIST
                    stack.append(["["])
                    at += 1
                elif op == 0x7D:  # EMPTY_DICT
                    if data[at + ahead : at + ahead + 1] in LITERALS and dictionaries(data, at, edge):
                        begin, at = at, self.take_rows(rows, at, stack)
                        if at > begin:
                            continue
                    stack.append(["{"])
                    at += 1
                elif op == 0x2E:  # STOP
                    at += 1
                    self.stopped = True
                    self.position = at
                    if edge < NO_EDGE and at != edge:
                        self.tear("it stops inside a frame")
                    elif self.overrun:  # the reader in C stopped at the frame; the one in Python reads on
                        self.part("it stops inside a frame")
                    if not stack:
                        self.flaw("stops with an empty stack")
                    return
                else:
                    begin, end = bounds(data, at, self.total)
                    self.position, self.stack = at, stack
                    TABLE[op](self, begin, end)
                    stack, edge = self.stack, self.edge
                    at = end
        except struct.error:
            self.position = at
            bounds(data, at, self.total)  # raises
            raise
        finally:
            budget.ops = length_hint(taken)
            self.position, self.stack = at, stack
        raise Budget.spent(f"pickles of over {limits.SCAN_OPS} instructions")
