"""What a pickle that is decoded holds, and what it would do to the outside world, which is only written down."""

from __future__ import annotations

from ..formats import limits
from .budget import Budget
from .findings import Verdict
from .known import CHECKS, KNOWN
from .operands import TruncatedError, is_marked
from .strings import text_at
from .values import KEPT, SHOWN_CALLS, UNKNOWN, Call, Name, Value
from .words import call_text

__all__ = ["AnewError", "Names", "State"]


_COMPUTED = "<computed>"

Names = dict[tuple[str, str], Name]


class AnewError(Exception):
    """The pickle fetches from the memo what was taken in a larger step and not kept."""


class State:
    """The state of a pickle.

    ``storages`` are where the keys of torch's storages are that it refers to, ``nested`` the texts and byte strings
    that are pickles or archives of their own, with their offsets; ``level`` is in how many others this one
    lies; ``origin`` is where ``data`` begins in its file. ``marked`` is what begins with its protocol.
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
        self.hurried = not level
        self.skipped = 0
        self.trusted: dict[tuple[bytes, ...], Name] = {}
        self._words: dict[Value, bool] = {}

    def flaw(self, why: str) -> None:
        """Keep the first fault, and where it is."""
        self.fault = self.fault or f"the pickle {why} (near byte {self.origin + self.position})"

    def stop(self, why: str) -> None:
        """Keep a fault at which every reader stops. What does not begin as a pickle is other data from there on.

        Raises TruncatedError for that.
        """
        if not self.marked:
            raise TruncatedError(why)
        self.flaw(why)

    def pop_mark(self) -> list[Value]:
        """Return what was put on the stack since the last mark; raises IndexError where there is none."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def index(self, begin: int, end: int) -> int:
        """Return the number of a memo entry as a line spells it; raises KeyError for one that is none."""
        operand = self.data[begin:end]
        if self.data[self.position] == 0x6A:  # LONG_BINGET
            return int.from_bytes(operand, "little")
        try:
            return int(operand)
        except ValueError:
            raise KeyError(operand) from None

    def maybe_nested(self, begin: int, end: int) -> None:
        """Look at a text or byte string that may be a pickle or an archive of its own."""

    # Names.

    def text(self, value: Value) -> str:
        """Return the text that a value is, or that it is none."""
        most = limits.SCAN_NAME_CHARACTERS + 1
        found = text_at(self.data, value, most) if isinstance(value, int) else None
        if found is None:
            self.flaw("names a global that is no text")
            return _COMPUTED
        return found

    def lines(self, begin: int, end: int) -> tuple[str, str]:
        """Return the two lines of an operand."""
        most = 4 * limits.SCAN_NAME_CHARACTERS
        middle = self.data.index(b"\n", begin)
        module, name = self.data[begin : min(middle, begin + most)], self.data[middle + 1 : min(end - 1, middle + most)]
        return module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace")

    def name(self, module: str, name: str) -> Name:
        """Count an import."""
        found = self.names.get((module, name))
        if found is None:
            found = self._new_name(module, name)
        found.imported += 1
        return found

    def _new_name(self, module: str, name: str) -> Name:
        most = limits.SCAN_NAME_CHARACTERS
        key = module[:most], name[:most]
        if len(self.names) >= limits.SCAN_NAMES and key not in self.names:
            key = "…", f"over {limits.SCAN_NAMES} names"
        whole = (module, name) == key
        if key not in self.names:
            verdict = KNOWN.get(key, Verdict.CODE) if whole else Verdict.CODE
            self.names[key] = Name(*key, verdict, CHECKS.get(key))
        return self.names[key]

    def extension(self, code: int) -> Name:
        """Count an import by a number that the reader's ``copyreg`` has a name for."""
        found = self.name("copyreg.extension", str(code))
        found.why = "which name the number stands for is up to the reader"
        return found

    # What would be done with them.

    def call(self, function: Value, args: Value, at: int) -> Value:
        """Count a call, and return what stands for its result."""
        base = _base(function)
        if base is None:
            if function != UNKNOWN:
                self.flaw("calls what is no function")
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
        return Call(function, args, base)

    def change(self, target: Value) -> None:
        """Count that something is added to an object, or its state is set, which calls a method of its class."""
        base = _base(target)
        if base is None:
            return
        base.changed += 1
        if base is target and base.verdict < Verdict.CODE:
            base.blame("it is changed itself, not an object made by it")

    def add(self, values: list[Value]) -> None:
        """Add to the container on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target += values[: max(0, KEPT - len(target))]
        else:
            self.change(target)

    def build(self, target: Value, state: Value) -> None:
        """Set the state of an object, which calls its ``__setstate__`` where it has one."""
        self.change(target)
        base = _base(target)
        if base is not None and base.verdict == Verdict.CODE and len(base.calls) < SHOWN_CALLS:
            base.calls.append(call_text(self.data, target, (state,), ".__setstate__"))

    def persistent(self, pid: Value, at: int) -> Value:
        """Return what stands for data that a reader finds by an id: torch's storages, or whatever it likes."""
        if isinstance(pid, tuple) and len(pid) in (5, 6) and self.is_storage_word(pid[0]) and _is_plain_name(pid[1]):
            if type(pid[2]) is int:
                self.storages.append(pid[2])
            return at
        reader = self.names.get(("<reader>", "persistent_load")) or self._new_name("<reader>", "persistent_load")
        reader.why = "what the id stands for is up to the reader"
        return self.call(reader, (pid,), at)

    def is_storage_word(self, value: Value) -> bool:
        """Return whether a value is the text ``storage``."""
        if not isinstance(value, int):
            return False
        known = self._words.get(value)
        if known is None:
            known = self._words[value] = text_at(self.data, value, 10) == "storage"
        return known


def _base(value: Value) -> Name | None:
    """Return the name that a call, or a call of what a call returned, began with; None for all that comes from none."""
    return value.base if isinstance(value, Call) else value if isinstance(value, Name) else None


def _is_plain_name(value: Value) -> bool:
    return isinstance(value, Name) and value.verdict < Verdict.CODE
