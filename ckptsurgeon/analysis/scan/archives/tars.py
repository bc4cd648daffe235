"""Scans the members of tar archives without extracting them; reports names and links that lead out of the archive."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from ....formats.base.slice import FileSlice
from ....formats.torch.tar import pax_records
from ..content.texts import program_note
from ..context import ScanItem, shortened
from ..findings import Fault, Verdict

__all__ = ["BLOCK", "Member", "is_tar", "look_at_tar", "members_of"]

# The members of a tar archive: POSIX ustar and pax (IEEE 1003.1-2001), GNU's long names, and older formats.
#
# Numbers are read as Python's ``tarfile`` reads them. If tar readers disagree on where the next member begins, this is
# a fault, and reading continues in the way that finds more members.

BLOCK = 512
_STEP = 1 << 20
_LONGEST = 64 << 10
_OCTAL_SIZES = 8**11
"""The smallest size with too many octal digits for a header; it needs a pax record."""
_NAMES, _MORE, _FOR_ALL, _SPARSE, _FOLDER = b"LK", b"xX", b"g", b"S", b"5"
_WITHOUT_DATA = b"123456"
_FIELDS = {b"path", b"linkpath", b"size"}


@dataclass(frozen=True)
class Member:
    """A member of a tar archive.

    ``kind`` is the type flag of its header. ``target`` is the target of a link. ``begin`` and ``size`` are the offset
    and the length of the member's data in the archive, in bytes.
    """

    name: str
    kind: bytes
    begin: int
    size: int
    target: str


@dataclass
class _More:
    """Fields of a member, such as a long name, from the extra headers before the member's header."""

    fields: dict[bytes, bytes] = field(default_factory=dict)

    def text(self, key: bytes, other: str) -> str:
        return _text(self.fields[key]) if key in self.fields else other


def is_tar(head: bytes) -> bool:
    """Return whether ``head`` is the 512-byte header of a tar member, by its checksum.

    The checksum may be the sum of the bytes as unsigned or as signed numbers.
    """
    if len(head) != BLOCK:
        return False
    rest = head[:148] + b" " * 8 + head[156:]
    checksum = _number(head[148:156])
    return any(head) and checksum in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def members_of(place: ScanItem, faults: list[Fault]) -> Iterator[Member]:
    """Yield the members of a tar archive; append the faults of the archive to ``faults``."""
    file, more = place.file, _More()
    before = at = 0
    while (at := _behind_zeros(place, at, faults)) + BLOCK <= file.size:
        head = file.read(at, BLOCK)
        kind, size = head[156:157], _number(head[124:136])
        if not is_tar(head) or size < 0:
            what = "an invalid size" if is_tar(head) else "a wrong checksum"
            faults.append(_corrupt(f"a member's header has {what} (at byte {at})"))
            return
        if kind in _SPARSE:
            faults.append(
                Fault("unreadable", "it contains a sparse file: this file and all members after it are not read")
            )
            return
        begin, size = at + BLOCK, _sized(head, more, size, faults)
        if begin + size > file.size:
            faults.append(_corrupt("it is truncated"))
            return
        before = at = begin + -(-size // BLOCK) * BLOCK
        if kind in _NAMES + _MORE + _FOR_ALL:
            _read_more(more, kind, file.read(begin, min(size, _LONGEST)), size, faults)
            continue
        yield Member(more.text(b"path", _name(head)), kind, begin, size, more.text(b"linkpath", _text(head[157:257])))
        more = _More()
    if before == at < file.size:
        faults.append(_corrupt("it is truncated"))


def _behind_zeros(place: ScanItem, at: int, faults: list[Fault]) -> int:
    """Return ``at``, or if blocks of zeros begin there, the offset after them; data after them is a fault.

    The fault is appended to ``faults``: most tar readers, but not all, stop at blocks of zeros.
    """
    file, begin = place.file, at
    while at < file.size:
        data = file.read(at, min(_STEP if at > begin else BLOCK, file.size - at))
        if any(data):
            at += (len(data) - len(data.lstrip(b"\0"))) // BLOCK * BLOCK
            break
        place.state.budget.take("searched", len(data))
        at += len(data)
    if begin < at < file.size:
        faults.append(_corrupt("it has data after its end"))
    return at


def _sized(head: bytes, more: _More, size: int, faults: list[Fault]) -> int:
    """Return the number of data bytes after a member's header. Add a fault if tar readers disagree on this number.

    ``size`` is the size in the header; ``more`` has the fields of extra headers before it.
    """
    told = more.fields.get(b"size", b"")
    if told.isdigit() and int(told[:20]) != size:
        if int(told[:20]) < _OCTAL_SIZES:
            faults.append(_corrupt("a member has different sizes in its header and in its pax header"))
        size = int(told[:20])
    kind = head[156:157]
    is_folder = kind == _FOLDER or (kind == b"\0" and _name(head).endswith("/"))
    if size and (is_folder or kind in _WITHOUT_DATA):
        faults.append(
            _corrupt(
                f"{_name(head)} has a size, but its type has no data: readers differ on where the next member begins"
            )
        )
        return 0
    return size


def _read_more(more: _More, kind: bytes, raw: bytes, size: int, faults: list[Fault]) -> None:
    if size > _LONGEST:
        faults.append(Fault("unreadable", f"it contains a header of over {_LONGEST} bytes"))
    if kind in _NAMES:
        more.fields[b"path" if kind == b"L" else b"linkpath"] = raw
        return
    found = _pax(raw)
    if found is None:
        faults.append(_corrupt("it contains a pax header that cannot be read"))
    elif kind in _MORE:
        more.fields.update(found)
    elif _FIELDS & set(found):
        faults.append(_corrupt("a pax header sets one name or size for all members"))
    if found and any(key.startswith(b"GNU.sparse") for key in found):
        faults.append(Fault("unreadable", "it contains a sparse file, whose parts are not reassembled"))


def _pax(raw: bytes) -> dict[bytes, bytes] | None:
    """Return the records of a pax header as a dictionary; None if they are malformed."""
    try:
        return dict(pax_records(raw.rstrip(b"\0")))
    except ValueError:
        return None


def _number(field: bytes) -> int:
    """Return the number in a header field: octal digits, or binary if its first byte is 0x80; -1 if invalid."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _name(head: bytes) -> str:
    prefix = _text(head[345:500]) if head[257:262] == b"ustar" and head[263:265] == b"00" else ""
    return f"{prefix}/{_text(head[:100])}" if prefix else _text(head[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _corrupt(why: str) -> Fault:
    return Fault("corrupt", why)


_SHOWN = 10
_KEPT = 1000
"""The largest number of faults and notes of one archive that are kept."""
_DEEP = 256
"""The largest number of nested folders in the path of a member."""
_LINKS = {b"1": "a hard link", b"2": "a link"}
_SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a FIFO"}


@dataclass
class _Tar:
    """The faults, notes and names that were found in one archive so far.

    ``programs`` are the names of Python files. ``paths`` are the paths of its files, ``links`` the paths of its links,
    both in lower case.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def see(self, member: Member) -> None:
        """Record a member, and its faults: for example a name that points outside the archive."""
        name, path = member.name, posixpath.normpath(member.name).casefold()
        if path.startswith("/") or ".." in name.split("/"):
            self._corrupt(f"{name} is outside of the archive's folder")
        if self._is_under_link(path):
            is_deep = path.count("/") >= _DEEP
            self._corrupt(
                f"{name} is over {_DEEP} folders deep" if is_deep else f"{name} is in a folder that is a link"
            )
        if member.kind == b"5" or name.endswith("/"):
            return
        if path in self.paths:
            self._corrupt(f"{name} occurs twice, if upper and lower case are not distinguished")
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

    def _see_link(self, member: Member, link: str) -> None:
        """Record a link as a note, or as a fault if it leads out of the archive; ``link`` is its description.

        The target of a symbolic link is relative to the link's folder, the target of a hard link to the archive.
        """
        around = "" if member.kind == b"1" else posixpath.dirname(member.name)
        if _leads_out(posixpath.join(around, member.target)):
            self._add(Fault("unreadable", f"{link}, out of the archive"))
        elif len(self.notes) < _KEPT:
            self.notes.append(link)

    def _corrupt(self, why: str) -> None:
        self._add(Fault("corrupt", why))

    def _add(self, fault: Fault) -> None:
        if len(self.faults) < _KEPT:
            self.faults.append(fault)

    def fault(self) -> Fault | None:
        """Return the worst fault; None if there are no faults."""
        return min(self.faults, key=lambda fault: fault.kind != "corrupt", default=None)

    def described(self) -> tuple[str, ...]:
        """Return notes on programs in the archive, on its faults except the worst, and on links, at most ``_SHOWN``."""
        told = self.fault()
        rest = [fault.why for fault in self.faults if fault is not told]
        return shortened(dict.fromkeys([*program_note(self.programs), *rest, *self.notes]), _SHOWN)


def _leads_out(path: str) -> bool:
    return path.startswith("/") or posixpath.normpath(path).split("/")[0] == ".."


def look_at_tar(place: ScanItem) -> None:
    """Scan every member of a tar archive, and add the findings to ``place.state``."""
    seen, at = _Tar(), len(place.state.found)
    place.add("tar archive")
    parts = 0
    try:
        parts = place.judge_all(_opened(place, seen))
    finally:
        verdict = Verdict.CODE if program_note(seen.programs) else Verdict.PLAIN
        place.state.amend(at, verdict=verdict, fault=seen.fault(), parts=parts, notes=seen.described())


def _opened(place: ScanItem, seen: _Tar) -> Iterator[ScanItem]:
    for member in members_of(place, seen.faults):
        seen.see(member)
        if member.size:
            yield place.inside(FileSlice(place.file, member.begin, member.size), member.name)
