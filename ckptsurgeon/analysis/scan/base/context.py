"""A look at one file and at all that lies in it: what was found, and what it may still cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ....formats.base import limits
from ....storage.read.base import File
from .budget import Budget
from .findings import Fault, Finding, Verdict
from .memory import Memory

__all__ = ["Look", "Place"]


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
