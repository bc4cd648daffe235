"""Checks that every file is as long as its header says."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_files
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    for one in subject.shards:
        if one.needed is None or one.size == one.needed or one.is_missing:
            continue
        off = abs(one.size - one.needed)
        how = "short" if one.size < one.needed else "too long"
        keys = listing(one.cut, SHOWN)
        lost = f", and {count(len(one.cut), 'tensor')} of it cannot be read: {keys}" if one.cut else ""
        yield Found(
            Status.FAIL,
            f"{escape(one.name)} is {off:,} bytes {how}: it has {one.size:,}, its header needs {one.needed:,}{lost}",
            "Fetch or save this file again.",
            one.cut,
            one.name,
            {"nbytes": one.size, "needed": one.needed, "off": one.size - one.needed},
        )


def _looks_at(subject: Subject) -> str:
    return count(len(subject.shards) or 1, "file")


CHECK = Check("file-size", "files are as long as their headers say", _run, without_files, _looks_at)
