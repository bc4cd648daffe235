"""Tar archives, read and never extracted: POSIX ustar and pax (IEEE 1003.1-2001), and GNU's long names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..formats import FileSlice
from .findings import Fault
from .look import Place

__all__ = ["is_tar", "look_at_tar"]

_BLOCK = 512
_LONG_NAME = 64 << 10
_NOTES = 10
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")
_KINDS = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a FIFO"}


@dataclass(frozen=True)
class _Member:
    name: str
    kind: bytes
    begin: int
    size: int
    target: str


class _BrokenError(Exception):
    """The archive is not in order; the text says how."""


def is_tar(head: bytes) -> bool:
    """Return whether 512 bytes are the header of a member, by its checksum."""
    return len(head) == _BLOCK and head[0] != 0 and _sum(head) == _octal(head[148:156])


def _sum(head: bytes) -> int:
    return sum(head[:148]) + 8 * 32 + sum(head[156:])


def _octal(field: bytes) -> int:
    """Return a number: octal digits, or binary where the first bit is set. -1 where it is none."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1 if digits else 0


def look_at_tar(place: Place) -> None:
    """Look at every member."""
    notes: list[str] = []
    wrong: list[str] = []
    at = len(place.look.found)
    place.add("tar archive")
    try:
        parts = place.judge_all(_opened(place, notes, wrong))
    except _BrokenError as error:
        wrong.insert(0, str(error))
        parts = 0
    fault = Fault("corrupt", wrong[0]) if wrong else None
    notes[:0] = wrong[1:]
    place.look.amend(at, fault=fault, parts=parts, notes=tuple(notes[:_NOTES]))


def _opened(place: Place, notes: list[str], wrong: list[str]) -> Iterator[Place]:
    """Yield the files; ``wrong`` is given what would be made outside of the archive's folder, or is no file."""
    for member in _members(place):
        if _is_outside(member.name):
            wrong.append(f"{member.name} points outside the archive")
        if member.kind in _KINDS:
            said = f"{member.name} is {_KINDS[member.kind]} {member.target}".rstrip()
            (notes if _is_inner_link(member) else wrong).append(said)
        elif member.kind in (b"\0", b"0", b"7") and member.size:
            yield place.inside(FileSlice(place.file, member.begin, member.size), member.name)


def _is_outside(name: str) -> bool:
    return name.startswith("/") or os.path.normpath(name).split("/")[0] == ".."


def _is_inner_link(member: _Member) -> bool:
    """Return whether a member is a link to something in the archive."""
    if member.kind == b"1":
        return not _is_outside(member.target)
    inner = os.path.join(os.path.dirname(member.name), member.target)
    return member.kind == b"2" and not _is_outside(inner) and not member.target.startswith("/")


def _members(place: Place) -> Iterator[_Member]:
    file, at, longer = place.file, 0, ""
    while at + _BLOCK <= file.size:
        head = file.read(at, _BLOCK)
        if not any(head):
            return
        size = _octal(head[124:136])
        if not is_tar(head) or size < 0:
            raise _BrokenError(f"a member's header has a wrong checksum (at byte {at})")
        begin = at + _BLOCK
        if begin + size > file.size:
            raise _BrokenError("it is cut short")
        at = begin + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        kind = head[156:157]
        if kind in (b"L", b"x"):
            longer = _long_name(file.read(begin, min(size, _LONG_NAME)), kind) or longer
            continue
        yield _Member(longer or _name(head), kind, begin, size, _text(head[157:257]))
        longer = ""


def _long_name(raw: bytes, kind: bytes) -> str:
    if kind == b"L":
        return _text(raw)
    found = _PAX_PATH.search(raw)
    return _text(found[1]) if found else ""


def _name(head: bytes) -> str:
    prefix = _text(head[345:500]) if head[257:262] == b"ustar" and head[263:265] == b"00" else ""
    return f"{prefix}/{_text(head[:100])}" if prefix else _text(head[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")
