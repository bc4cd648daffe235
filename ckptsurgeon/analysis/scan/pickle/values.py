"""What stands on the stack of a pickle that is only decoded.

- an ``int``: plain data; the offset of the instruction that begins it, from which it can be shown
- a ``tuple`` of such values, all of them
- a ``list``: a container; first the text that opens it, then the first values in it
- ``Name``: something imported; ``Call``: what calling something would have returned
"""

from __future__ import annotations

from collections.abc import Callable

from ..base.findings import Use, Verdict

__all__ = ["KEPT", "UNKNOWN", "Call", "Check", "Name", "Value"]

KEPT = 9
"""Length of a container's list: its opening and eight values."""
SHOWN_CALLS = 3
"""Calls of one name that are shown with their arguments."""
UNKNOWN = -1
"""The offset of a value of which nothing is known: what was missing, or comes from outside."""

Value = object
"""An int, a tuple, a list, a Name or a Call."""

Check = Callable[[Callable[[object], str | None], object], str]
"""Says what is wrong with the arguments of a known name, or nothing. Takes what reads a text, and the arguments."""


class Name:
    """A name that a pickle imports, and what it does with it. ``quiet`` names may be called with any arguments."""

    __slots__ = (
        "called",
        "calls",
        "changed",
        "check",
        "imported",
        "makes_tensors",
        "module",
        "name",
        "quiet",
        "verdict",
        "why",
    )

    def __init__(self, module: str, name: str, verdict: Verdict, check: Check | None = None) -> None:
        self.module = module
        self.name = name
        self.verdict = verdict
        self.check = check
        self.quiet = verdict < Verdict.CODE and check is None
        self.makes_tensors = (module, name) == ("torch._utils", "_rebuild_tensor_v2")
        self.imported = self.called = self.changed = 0
        self.calls: list[str] = []
        self.why = ""

    def blame(self, why: str) -> None:
        """Count a known name as unknown code, for what is done with it."""
        self.verdict = Verdict.CODE
        self.quiet = False
        self.why = self.why or why

    def join(self, other: Name) -> None:
        """Add what another pickle does with the same name."""
        self.imported += other.imported
        self.called += other.called
        self.changed += other.changed
        self.calls += other.calls[: SHOWN_CALLS - len(self.calls)]
        if other.verdict > self.verdict:
            self.blame(other.why)

    def use(self) -> Use:
        """Return what was seen of the name."""
        return Use(
            self.module, self.name, self.verdict, imported=self.imported, called=self.called, changed=self.changed,
            calls=tuple(self.calls), why=self.why,
        )  # fmt: skip


class Call:
    """What calling ``function`` would have returned. It was not called. ``base`` is the name that all began with."""

    __slots__ = ("args", "base", "function")

    def __init__(self, function: Value, args: Value, base: Name) -> None:
        self.function = function
        self.args = args
        self.base = base
