"""The state of the scan of one file and its contents: findings, limits, and data that was unpacked in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from ...errors import FormatError
from ...formats.base import limits
from ...storage.read.base import Advance, File, Folder
from ...util.text import escape
from .findings import Fault, Finding, Verdict

__all__ = ["Budget", "InMemoryFile", "ScanItem", "ScanState", "SpentError", "shortened"]

# Limits for one file, including its contents.


class SpentError(Exception):
    """Raised when the scan of a file reaches a limit; the message says which limit."""


class Budget:
    """The remaining amounts of each limit while one file is scanned, such as the bytes that may still be unpacked."""

    def __init__(self) -> None:
        self.ops = limits.SCAN_OPS
        self.bytes = limits.SCAN_BYTES
        self.unpacked = limits.SCAN_UNPACKED
        self.searched = limits.SCAN_SEARCHED
        self.parts = limits.SCAN_PARTS

    @staticmethod
    def spent(what: str) -> SpentError:
        """Return the error for a file that exceeds a limit; ``what`` is a phrase such as "over 1000 records"."""
        return SpentError(f"it has {what}: the rest is not scanned")

    def take(self, what: str, number: int) -> None:
        """Subtract ``number`` from the remaining amount of a limit; raises SpentError if too little remains.

        ``what`` is the name of the limit: an attribute of this class.
        """
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


def shortened(notes: Iterable[str], most: int) -> tuple[str, ...]:
    """Return the first ``most`` of the notes on one finding; if there are more, a further note with their number."""
    every = tuple(notes)
    more = len(every) - most
    return (*every[:most], f"and {more} more notes" if more > 1 else every[most]) if more > 0 else every


# Unpacked bytes with the interface of a file.


class InMemoryFile(File):
    """Bytes that were unpacked from a file, with the interface of a file."""

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
            raise FormatError(f"{escape(self.uri)}: a part of the file is truncated.", rule="slice")
        return self._data[offset : offset + nbytes]

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; raises FormatError beyond the end."""
        view[:] = self.read(offset, len(view))

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Do nothing: the bytes are in memory and need not be fetched."""

    def keep(self, wanted: bool) -> None:
        """Do nothing: no bytes were fetched that could be kept."""

    @property
    def closed(self) -> bool:
        """Return False: bytes in memory need no closing."""
        return False

    def descriptor(self) -> AbstractContextManager[None]:
        """Return a context manager whose value is None: bytes in memory have no file descriptor."""
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the file from which the bytes were unpacked."""
        return self._outer.folder()

    def close(self) -> None:
        """Do nothing: the file from which the bytes were unpacked belongs to the caller."""


@dataclass
class ScanState:
    """The findings about one file. ``judge`` is a function that scans the file, or a part of it (a ``ScanItem``).

    It returns whether it added a finding.
    """

    path: str
    judge: Callable[[ScanItem], bool]
    budget: Budget = field(default_factory=Budget)
    found: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Add a finding. If there are too many, merge it into the last finding, with the worse of both verdicts."""
        if len(self.found) < limits.SCAN_FOUND:
            self.found.append(finding)
            return
        last = self.found[-1]
        why = f"it has over {limits.SCAN_FOUND} findings"
        self.found[-1] = replace(last, verdict=max(last.verdict, finding.verdict), fault=Fault("unreadable", why))

    def amend(self, at: int, **changes: object) -> None:
        """Replace fields of the finding with the index ``at``."""
        if at < len(self.found):
            self.found[at] = replace(self.found[at], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ScanItem:
    """A file, or a part of a file such as a record of an archive, that is to be scanned.

    ``within`` is the path of the part inside the file, '' for the file itself. ``depth`` is the level of nesting: 0 for
    the file itself.
    """

    state: ScanState
    file: File
    within: str = ""
    depth: int = 0

    @property
    def name(self) -> str:
        """The name of the file or part, without folders."""
        return (self.within or self.file.name).rpartition(" > ")[2].rpartition("/")[2]

    @property
    def path(self) -> str:
        """The path of the file and, for a part, the path inside the file."""
        return f"{self.state.path} > {self.within}" if self.within else self.state.path

    def head(self, nbytes: int = 512) -> bytes:
        """Return the first bytes of the file or part, at most ``nbytes``."""
        return self.file.read(0, min(nbytes, self.file.size))

    def inside(self, file: File, name: str) -> ScanItem:
        """Return an item for a part of this item; ``file`` has the bytes of the part."""
        return ScanItem(self.state, file, f"{self.within} > {name}" if self.within else name, self.depth + 1)

    def unpacked(self, data: bytes, name: str) -> ScanItem:
        """Return an item for ``data``, which was unpacked from this item."""
        return self.inside(InMemoryFile(self.file, data), name)

    def judge(self) -> bool:
        """Scan this item; returns whether a finding was added."""
        if self.depth > limits.SCAN_DEPTH:
            self.add("nested", fault=Fault("unreadable", f"it is inside more than {limits.SCAN_DEPTH} nested files"))
            return True
        return self.state.judge(self)

    def judge_all(self, places: Iterable[ScanItem]) -> int:
        """Scan several items; returns the number of items for which no finding was added."""
        nothing = 0
        for place in places:
            self.state.budget.take("parts", 1)
            nothing += not place.judge()
        return nothing

    def add(
        self, form: str, verdict: Verdict = Verdict.PLAIN, *, fault: Fault | None = None, parts: int = 0,
        notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Add a finding for this item; ``form`` is the name of its format.

        ``parts`` is the number of records in this item that have no findings.
        """
        self.state.add(Finding(self.state.path, self.within, form, verdict, fault, parts=parts, notes=notes))
