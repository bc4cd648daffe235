"""A look at one file and all that lies in it: what was found, what it may cost, and bytes unpacked in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from ...errors import FormatError
from ...formats.base import limits
from ...storage.read.base import Advance, File, Folder
from ...util.text import escape
from .findings import Fault, Finding, Verdict

__all__ = ["Budget", "Look", "Memory", "Place", "SpentError"]

# What looking at one file may cost, all that lies in it included.


class SpentError(Exception):
    """A bound is reached; the text says at what."""


class Budget:
    """What is left for one file."""

    def __init__(self) -> None:
        self.ops = limits.SCAN_OPS
        self.bytes = limits.SCAN_BYTES
        self.unpacked = limits.SCAN_UNPACKED
        self.searched = limits.SCAN_SEARCHED
        self.parts = limits.SCAN_PARTS

    @staticmethod
    def spent(what: str) -> SpentError:
        """Return the error for a file in which there is too much of something."""
        return SpentError(f"it holds {what}, more than are looked at")

    def take(self, what: str, number: int) -> None:
        """Spend some of a bound; raises SpentError where there is too little left."""
        left = getattr(self, what) - number
        if left < 0:
            raise self.spent(_WORDS[what])
        setattr(self, what, left)


_WORDS = {
    "ops": f"pickles of over {limits.SCAN_OPS} instructions",
    "bytes": f"over {limits.SCAN_BYTES} bytes of pickles",
    "unpacked": f"over {limits.SCAN_UNPACKED} bytes when unpacked",
    "searched": f"over {limits.SCAN_SEARCHED} bytes to search",
    "parts": f"over {limits.SCAN_PARTS} records",
}


# Bytes that were unpacked, as a file.


class Memory:
    """Bytes from inside a file, which have no place of their own there."""

    mtime_ns: int | None = None
    remote = False
    validator = ""

    def __init__(self, outer: File, data: bytes) -> None:
        self.uri = outer.uri
        self.name = outer.name
        self.size = len(data)
        self._outer = outer
        self._data = data

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; raises FormatError beyond the end."""
        if offset < 0 or offset + nbytes > self.size:
            raise FormatError(f"{escape(self.uri)}: a part of it ends too early.", rule="slice")
        return self._data[offset : offset + nbytes]

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises FormatError beyond the end."""
        view[:] = self.read(offset, len(view))

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: what will be read is here."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: it was not fetched."""

    @property
    def closed(self) -> bool:
        """Never: it is somebody else's memory."""
        return False

    def descriptor(self) -> AbstractContextManager[None]:
        """Lend None, since the kernel has nothing to copy from."""
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the file."""
        return self._outer.folder()

    def close(self) -> None:
        """Leave the file open, which is somebody else's."""


@dataclass
class Look:
    """What was found in one file. ``judge`` looks at a thing inside by its content."""

    path: str
    judge: Callable[[Place], bool]
    budget: Budget = field(default_factory=Budget)
    found: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Keep a finding; beyond the limit only the worst is kept, as the last."""
        if len(self.found) < limits.SCAN_FOUND:
            self.found.append(finding)
            return
        last = self.found[-1]
        why = f"it holds over {limits.SCAN_FOUND} things to list"
        self.found[-1] = replace(last, verdict=max(last.verdict, finding.verdict), fault=Fault("unreadable", why))

    def amend(self, at: int, **changes: object) -> None:
        """Say more of the finding that was added as number ``at``."""
        if at < len(self.found):
            self.found[at] = replace(self.found[at], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Place:
    """A thing to look at: a file or what lies in it, ``within`` the outer one and ``depth`` files deep."""

    look: Look
    file: File
    within: str = ""
    depth: int = 0

    @property
    def name(self) -> str:
        """The name it goes by where it lies, without the folders that lead there."""
        return (self.within or self.file.name).rpartition(" > ")[2].rpartition("/")[2]

    @property
    def path(self) -> str:
        """Where it lies: in what, and by which name there."""
        return f"{self.look.path} > {self.within}" if self.within else self.look.path

    def head(self, nbytes: int = 512) -> bytes:
        """Return how it begins."""
        return self.file.read(0, min(nbytes, self.file.size))

    def inside(self, file: File, name: str) -> Place:
        """Return the place of something inside this one."""
        return Place(self.look, file, f"{self.within} > {name}" if self.within else name, self.depth + 1)

    def unpacked(self, data: bytes, name: str) -> Place:
        """Return the place of bytes that were unpacked from this one."""
        return self.inside(Memory(self.file, data), name)

    def judge(self) -> bool:
        """Look at it; returns whether anything was found that is worth listing."""
        if self.depth > limits.SCAN_DEPTH:
            self.add("nested", fault=Fault("unreadable", f"it lies over {limits.SCAN_DEPTH} files deep"))
            return True
        return self.look.judge(self)

    def judge_all(self, places: Iterable[Place]) -> int:
        """Look at several; returns in how many there was nothing to list."""
        nothing = 0
        for place in places:
            self.look.budget.take("parts", 1)
            nothing += not place.judge()
        return nothing

    def add(
        self, form: str, verdict: Verdict = Verdict.PLAIN, *, fault: Fault | None = None, parts: int = 0,
        notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Keep what was found here."""
        self.look.add(Finding(self.look.path, self.within, form, verdict, fault, parts=parts, notes=notes))
