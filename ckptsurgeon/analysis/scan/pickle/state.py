"""The state of decoding a pickle, and the records of the names that the pickle would import, call and change."""

from __future__ import annotations

import sys

from ....formats.base import limits
from ....formats.pickle.state import TruncatedError, bounds, is_marked, line_index
from ..context import Budget
from ..findings import Verdict
from .known import CHECKS, KNOWN
from .texts import call_text, text_at
from .values import KEPT, SHOWN_CALLS, UNKNOWN, ImportedName, UnmadeCall, Value, is_object, is_state, is_tuple

__all__ = ["NO_EDGE", "Names", "PickleState", "RestartError"]

_COMPUTED = "<computed>"
NO_EDGE = sys.maxsize
"""The value of ``PickleState.edge`` outside of a frame."""
BEYOND = "an instruction reaches beyond its frame"

Names = dict[tuple[str, str], ImportedName]


class RestartError(Exception):
    """Raised if a pickle reads a memo entry that the fast path did not keep: the pickle must be decoded again."""


class PickleState:
    """The state of decoding one pickle.

    ``storages`` are the offsets of the keys of torch storages. ``nested`` are (offset, bytes) of the strings and byte
    strings whose content is a pickle or an archive. ``level`` is the number of pickles in which this one is nested.
    ``origin`` is the offset of ``data`` in its file. ``marked`` is true if the pickle begins with a protocol. ``edge``
    is the offset of the current frame's end. ``fault`` is the first fault. Python has two pickle readers, one in C and
    one in Python: ``parted`` says where they disagree first; ``torn`` is true if they read different instructions from
    there on. ``overrun`` is true if a frame reaches beyond the end of the data; only the reader in C stops at such a
    frame. ``hurried`` allows the fast paths.
    """

    def __init__(
        self, data: bytes, budget: Budget, *, names: Names, start: int = 0, total: int = 0, level: int = 0
    ) -> None:
        self.data = data
        self.total = max(total, len(data))
        self.start = self.position = start
        self.budget = budget
        self.names = names
        self.stack: list[Value] = []
        self.marks: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self.storages: list[int] = []
        self.nested: list[tuple[int, bytes]] = []
        self.level = level
        self.origin = 0
        self.marked = is_marked(data[start : start + 2])
        self.stopped = False
        self.fault = ""
        self.edge = NO_EDGE
        self.parted = ""
        self.torn = False
        self.overrun = False
        self.hurried = not level
        self.skipped = 0
        self.trusted: dict[tuple[bytes, ...], ImportedName] = {}
        self._words: dict[Value, bool] = {}

    def flaw(self, why: str) -> None:
        """Record a fault of the pickle with its position, unless a fault was recorded before."""
        self.fault = self.fault or f"the pickle {why} (near byte {self.origin + self.position})"

    def part(self, why: str) -> None:
        """Record that Python's two readers (in C and in Python) may disagree here, or may differ from this decoder.

        Only the first such position is kept.
        """
        self.parted = self.parted or f"readers of pickles disagree: {why} (near byte {self.origin + self.position})"

    def tear(self, why: str) -> None:
        """Record a position from which on Python's two readers read different instructions.

        The reader in C drops the rest of a frame there; the reader in Python does not.
        """
        self.part(why)
        self.torn = True

    def leave_frame(self, at: int) -> None:
        """End the frame at ``at``; record that readers disagree if an instruction reaches beyond the frame's end."""
        self.position = at
        if at > self.edge:
            self.tear(BEYOND)
        self.edge = NO_EDGE

    def stop(self, why: str) -> None:
        """Record a fault at which every reader stops.

        Raises TruncatedError if the data does not begin with a protocol, because then it is probably not a pickle. If
        the instruction reaches beyond its frame, the reader in C reads another instruction there, which may be valid.
        """
        if bounds(self.data, self.position, self.total)[1] > self.edge:
            self.tear(BEYOND)
        if not self.marked:
            raise TruncatedError(why)
        self.flaw(why)

    def pop_mark(self) -> list[Value]:
        """Return the values on the stack since the last mark; raises IndexError if there is no mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def index(self, begin: int, end: int) -> int:
        """Return the memo index in the operand between two offsets; raises KeyError if it is invalid."""
        operand = self.data[begin:end]
        if self.data[self.position] == 0x6A:  # LONG_BINGET
            return int.from_bytes(operand, "little")
        try:
            index, alike = line_index(operand[:-1])
        except ValueError:
            raise KeyError(operand) from None
        if not alike:
            self.part("a memo index has a form that no pickler writes")
        return index

    def maybe_nested(self, begin: int, end: int) -> None:
        """Do nothing. ``Machine`` overrides this to record strings whose content is a pickle or an archive."""

    # Names.

    def text(self, value: Value) -> str:
        """Return a string on the stack; if the value is not a string, record a fault and return ``<computed>``."""
        most = limits.SCAN_NAME_CHARACTERS + 1
        found = text_at(self.data, value, most) if isinstance(value, int) else None
        if found is None:
            self.flaw("imports a name that is not a string")
            return _COMPUTED
        return found

    def lines(self, begin: int, end: int) -> tuple[str, str]:
        """Return the two lines of the operand that is between two offsets, as strings."""
        middle = self.data.index(b"\n", begin)
        return self.line(begin, middle), self.line(middle + 1, end - 1)

    def line(self, begin: int, end: int) -> str:
        """Return the line between two offsets as a string; a line that is longer than any name may be is cut."""
        return self.data[begin : min(end, begin + 4 * limits.SCAN_NAME_CHARACTERS)].decode("utf-8", "backslashreplace")

    def name(self, module: str, name: str) -> ImportedName:
        """Count an import of a name from a module, and return the record of its uses."""
        found = self.names.get((module, name))
        if found is None:
            found = self._new_name(module, name)
        found.imported += 1
        return found

    def _new_name(self, module: str, name: str) -> ImportedName:
        most = limits.SCAN_NAME_CHARACTERS
        key = module[:most], name[:most]
        if len(self.names) >= limits.SCAN_NAMES and key not in self.names:
            key = "…", f"over {limits.SCAN_NAMES} names"
        whole = (module, name) == key
        if key not in self.names:
            verdict = KNOWN.get(key, Verdict.CODE) if whole else Verdict.CODE
            self.names[key] = ImportedName(*key, verdict, CHECKS.get(key))
        return self.names[key]

    def extension(self, code: int) -> ImportedName:
        """Count an import by an extension number, and return the record of its uses.

        The reader's ``copyreg`` registry maps the number to a name.
        """
        found = self.name("copyreg.extension", str(code))
        found.why = (
            "it is an extension number: the copyreg registry of the program that loads the file decides which name it "
            "means"
        )
        return found

    # Uses of names.

    def call(self, function: Value, args: Value, at: int) -> Value:
        """Count a call, and return a value that represents its result; ``at`` is the offset of the instruction."""
        if not is_tuple(self.data, args):
            self.part("a call has arguments that are not a tuple")
        base = _base(function)
        if base is None:
            if function != UNKNOWN:
                self.flaw("calls a value that is not a function")
            return UNKNOWN
        base.called += 1
        if base.check is not None and base is function:
            why = base.check(lambda value: text_at(self.data, value, 100) if isinstance(value, int) else None, args)
            if why:
                base.blame(why)
        if base.verdict < Verdict.CODE:
            return at
        if len(base.calls) < SHOWN_CALLS:
            base.calls.append(call_text(self.data, function, args))
        return UnmadeCall(function, args, base)

    def change(self, target: Value) -> None:
        """Count a change of an object (new items or a new state), which would call a method of its class."""
        base = _base(target)
        if base is None:
            return
        base.changed += 1
        if base is target and base.verdict < Verdict.CODE:
            base.blame("the class or function itself is changed, not an object that it created")

    def add(self, values: list[Value]) -> None:
        """Add values to the container on top of the stack; if it is another object, count a change of this object."""
        target = self.stack[-1]
        if isinstance(target, list):
            target += values[: max(0, KEPT - len(target))]
        else:
            self.change(target)

    def add_nothing(self, target: Value, opening: str) -> None:
        """Record a disagreement of readers if an empty group of items is added to the wrong kind of value.

        Of Python's two readers, the one in Python refuses this; the one in C does not. ``opening`` is the bracket of
        the right kind of container.
        """
        if not isinstance(target, list) or target[0] != opening:
            self.part("an empty group of items is added to a value of the wrong kind")

    def build(self, target: Value, state: Value) -> None:
        """Count that ``target`` gets a state: a reader calls ``target.__setstate__``, if ``target`` has this method."""
        if not is_state(self.data, state) or not is_object(self.data, target):
            self.part("a state has a form that no pickler writes")
        self.change(target)
        base = _base(target)
        if base is not None and base.verdict == Verdict.CODE and len(base.calls) < SHOWN_CALLS:
            base.calls.append(call_text(self.data, target, (state,), ".__setstate__"))

    def persistent(self, pid: Value, at: int) -> Value:
        """Return a value for the object that a reader loads by a persistent id, such as a torch storage.

        If the id does not name a torch storage, count a call of the reader's ``persistent_load``.
        """
        if isinstance(pid, tuple) and len(pid) in (5, 6) and self.is_storage_word(pid[0]) and _is_plain_name(pid[1]):
            if type(pid[2]) is int:
                self.storages.append(pid[2])
            return at
        reader = self.names.get(("<reader>", "persistent_load")) or self._new_name("<reader>", "persistent_load")
        reader.why = "the reader decides which object the id refers to"
        return self.call(reader, (pid,), at)

    def is_storage_word(self, value: Value) -> bool:
        """Return whether a value is the string ``storage``."""
        if not isinstance(value, int):
            return False
        known = self._words.get(value)
        if known is None:
            known = self._words[value] = text_at(self.data, value, 10) == "storage"
        return known


def _base(value: Value) -> ImportedName | None:
    """Return the imported name at the beginning of a chain of calls.

    Returns None for a value that is neither an import nor the result of a call.
    """
    return value.base if isinstance(value, UnmadeCall) else value if isinstance(value, ImportedName) else None


def _is_plain_name(value: Value) -> bool:
    return isinstance(value, ImportedName) and value.verdict < Verdict.CODE
