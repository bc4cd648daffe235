"""The result of a scan, as plain data: verdicts, the names that a pickle would import, and faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ...util.notebook import InNotebooks
from ...util.short_repr import Brief
from ...util.text import count, escape, human_bytes

__all__ = ["Fault", "Finding", "Scan", "Use", "Verdict"]


class Verdict(IntEnum):
    """The effect of reading a file, from harmless to running unknown code.

    The verdict on a file is the highest verdict on one of its parts.
    """

    PLAIN = 0
    TENSORS = 1
    CODE = 2

    def __str__(self) -> str:
        return ("plain data", "tensor rebuilding", "unknown code")[self]


@dataclass(frozen=True, repr=False)
class Fault(Brief):
    """The reason why a file or a part of it could not be scanned completely.

    ``kind`` is ``corrupt`` if the data is invalid; ``unreadable`` if the scan does not support the data, or reached a
    limit.
    """

    kind: str
    why: str

    def to_json(self) -> dict[str, str]:
        """Return the fault as plain data."""
        return {"kind": self.kind, "why": self.why}


@dataclass(frozen=True, repr=False)
class Use(Brief):
    """A name that a pickle imports, and its uses.

    ``imported``, ``called`` and ``changed`` are the numbers of instructions that would import, call or change the
    object. ``calls`` are the first calls as strings, escaped and shortened. ``why`` is the reason if a name that is
    usually harmless has the verdict CODE because of how it is used; otherwise ''.
    """

    module: str
    name: str
    verdict: Verdict
    imported: int = 0
    called: int = 0
    changed: int = 0
    calls: tuple[str, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the imported name and its uses as plain data."""
        return {
            "module": self.module,
            "name": self.name,
            "verdict": str(self.verdict),
            "imported": self.imported,
            "called": self.called,
            "changed": self.changed,
            "calls": list(self.calls),
            "why": self.why or None,
        }


@dataclass(frozen=True, repr=False)
class Finding(Brief):
    """The result for one file, or for one part of a file.

    ``path`` is the path of the file, relative to the scanned folder. ``within`` is the path of the part inside the
    file, as in ``archive/data.pkl``. ``pickles`` is the number of consecutive pickles. ``parts`` is the number of
    records of an archive that have no findings.
    """

    path: str
    within: str
    format: str
    verdict: Verdict = Verdict.PLAIN
    fault: Fault | None = None
    uses: tuple[Use, ...] = ()
    pickles: int = 0
    parts: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the file or part was scanned completely, and reading it does no more than rebuild tensors."""
        return self.verdict < Verdict.CODE and self.fault is None

    @property
    def judged(self) -> str:
        """The verdict in words, or the kind of the fault if nothing more than plain data was found before the fault."""
        return str(self.verdict) if self.verdict or self.fault is None else self.fault.kind

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {
            "path": self.path,
            "within": self.within,
            "format": self.format,
            "verdict": self.judged,
            "fault": self.fault.to_json() if self.fault else None,
            "names": [use.to_json() for use in self.uses],
            "pickles": self.pickles,
            "parts": self.parts,
            "notes": list(self.notes),
        }


def _badness(one: Finding) -> tuple[int, bool, bool]:
    """Return a value that is larger for worse findings."""
    return one.verdict, one.fault is not None, one.judged == "corrupt"


@dataclass(frozen=True, repr=False)
class Scan(InNotebooks):
    """The findings on a file, or on all files of a folder: what reading them would do.

    ``nbytes`` is the size of the files in bytes.
    """

    path: str
    files: int
    nbytes: int
    found: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        looked = f"{count(self.files, 'file')}, {human_bytes(self.nbytes)}"
        return f"<Scan {escape(self.path)}: {looked}, {self.judged}{'' if self.whole else ', not scanned completely'}>"

    @property
    def verdict(self) -> Verdict:
        """The highest verdict of all findings."""
        return max((one.verdict for one in self.found), default=Verdict.PLAIN)

    @property
    def judged(self) -> str:
        """The highest verdict in words, or the kind of the worst fault if all findings have faults and no verdict."""
        if self.verdict or any(one.fault is None for one in self.found):
            return str(self.verdict)
        return max(self.found, key=_badness).judged if self.found else str(self.verdict)

    @property
    def judged_files(self) -> Mapping[str, str]:
        """The verdict on each file in words, or the kind of its worst fault; see ``Finding.judged``."""
        files: dict[str, list[Finding]] = {}
        for one in self.found:
            files.setdefault(one.path, []).append(one)
        return {path: max(found, key=_badness).judged for path, found in files.items()}

    @property
    def whole(self) -> bool:
        """True if everything was scanned completely: nothing is corrupt or unreadable."""
        return all(one.fault is None for one in self.found)

    @property
    def ok(self) -> bool:
        """True if everything was scanned completely, and reading does no more than rebuild tensors."""
        return self.whole and self.verdict < Verdict.CODE

    @property
    def beyond(self) -> Sequence[Finding]:
        """The findings that are not ``ok``: they do more than rebuild tensors, or the scan was incomplete."""
        return [one for one in self.found if not one.ok]

    def to_json(self) -> dict[str, Any]:
        """Return the scan as plain data."""
        return {
            "kind": "ckpt.scan",
            "version": 1,
            "path": self.path,
            "verdict": self.judged,
            "whole": self.whole,
            "ok": self.ok,
            "files": self.files,
            "nbytes": self.nbytes,
            "found": [one.to_json() for one in self.found],
            "notes": list(self.notes),
        }
