"""Tar archives, looked at member by member and never extracted; names and links that lead elsewhere are faults."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from ....formats.base.slice import FileSlice
from ..base.context import Place
from ..base.findings import Fault, Verdict
from ..content.texts import program_note
from .tar_members import Member, is_tar, members_of

__all__ = ["is_tar", "look_at_tar"]

_SHOWN = 10
_KEPT = 1000
"""Faults and notes of one archive; the first ones tell."""
_DEEP = 256
"""Folders in which a member may lie."""
_LINKS = {b"1": "a hard link", b"2": "a link"}
_SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a FIFO"}


@dataclass
class _Tar:
    """What was seen of one archive so far. ``paths`` are its files and ``links`` its links, in one case of letters."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def see(self, member: Member) -> None:
        """Keep what is wrong with a member."""
        name, path = member.name, posixpath.normpath(member.name).casefold()
        if path.startswith("/") or ".." in name.split("/"):
            self._corrupt(f"{name} points outside the archive")
        if self._is_under_link(path):
            self._corrupt(f"{name} lies under a link, or over {_DEEP} folders deep")
        if member.kind == b"5" or name.endswith("/"):
            return
        if path in self.paths:
            self._corrupt(f"{name} is in it twice, or in two cases of letters")
        self.paths.add(path)
        if program_note([name]):
            self.programs.append(name)
        if member.kind in _LINKS:
            self.links.add(path)
            self._see_link(member, f"{name} is {_LINKS[member.kind]} to {member.target}")
        elif member.kind in _SPECIAL:
            self._add(Fault("unreadable", f"{name} is {_SPECIAL[member.kind]}"))

    def _is_under_link(self, path: str) -> bool:
        parts = path.split("/")
        return len(parts) > _DEEP or any("/".join(parts[:i]) in self.links for i in range(1, len(parts)) if self.links)

    def _see_link(self, member: Member, said: str) -> None:
        """Links of files are relative to where they lie, hard links to the archive."""
        around = "" if member.kind == b"1" else posixpath.dirname(member.name)
        if _leads_out(posixpath.join(around, member.target)):
            self._add(Fault("unreadable", f"{said}, out of the archive"))
        elif len(self.notes) < _KEPT:
            self.notes.append(said)

    def _corrupt(self, why: str) -> None:
        self._add(Fault("corrupt", why))

    def _add(self, fault: Fault) -> None:
        if len(self.faults) < _KEPT:
            self.faults.append(fault)

    def fault(self) -> Fault | None:
        """Return the worst of the faults."""
        return min(self.faults, key=lambda fault: fault.kind != "corrupt", default=None)

    def said(self) -> tuple[str, ...]:
        """Return what else there is to say."""
        told = self.fault()
        rest = [fault.why for fault in self.faults if fault is not told]
        return tuple(dict.fromkeys([*program_note(self.programs), *rest, *self.notes]))[:_SHOWN]


def _leads_out(path: str) -> bool:
    return path.startswith("/") or posixpath.normpath(path).split("/")[0] == ".."


def look_at_tar(place: Place) -> None:
    """Look at every member."""
    seen, at = _Tar(), len(place.look.found)
    place.add("tar archive")
    parts = 0
    try:
        parts = place.judge_all(_opened(place, seen))
    finally:
        verdict = Verdict.CODE if program_note(seen.programs) else Verdict.PLAIN
        place.look.amend(at, verdict=verdict, fault=seen.fault(), parts=parts, notes=seen.said())


def _opened(place: Place, seen: _Tar) -> Iterator[Place]:
    for member in members_of(place, seen.faults):
        seen.see(member)
        if member.size:
            yield place.inside(FileSlice(place.file, member.begin, member.size), member.name)
