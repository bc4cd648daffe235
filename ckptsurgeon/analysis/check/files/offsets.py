"""Checks that every byte of a file belongs to exactly one tensor, and that no tensor has too few or too many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ....util.text import count, escape, listing
from ..check import Check, without_files
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "Save this file again: another reader may take other bytes for these tensors, or refuse the file."


def _run(subject: Subject) -> Iterator[Found]:
    for one in subject.shards:
        invalid = [f"{escape(key)} {why}" for key, why in one.unsound.items()]
        yield from _told(one.name, "overlap", one.overlaps)
        yield from _told(one.name, "hole", one.holes)
        yield from _told(one.name, "invalid entry", invalid, "invalid entries", tuple(one.unsound))


def _told(file: str, what: str, told: Sequence[str], plural: str = "", keys: tuple[str, ...] = ()) -> Iterator[Found]:
    if told:
        said = f"{escape(file)} has {count(len(told), what, plural)}: {listing(list(told), 2)}"
        yield Found(Status.FAIL, said, ADVICE, keys, file, {"number": len(told)})


CHECK = Check("offsets", "no two tensors share bytes, and no bytes lie between them", _run, without_files)
