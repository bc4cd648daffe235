"""Checks that the index lists all files in its folder that are named like shards."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    index = subject.index
    names, of = (index.others, escape(index.name)) if index is not None else (subject.strays, "")
    if names:
        is_one = len(names) == 1
        number = f"{count(len(names), 'file')} {'is named like a shard' if is_one else 'are named like shards'}"
        them = "it" if is_one else "them"
        why = (
            f"{of} does not list {them}"
            if of
            else f"there is no index, so no program loads {them}: programs load only the file with all weights"
        )
        yield Found(
            Status.WARN,
            f"{number}, but {why}: {listing([escape(one) for one in names], SHOWN)}",
            "Remove these files if they are from an earlier save.",
            figures={"files": len(names)},
        )
    for name, lost in index.stale.items() if index is not None else ():
        missing = f"{count(len(lost), 'shard')} of it {'is' if len(lost) == 1 else 'are'} missing"
        yield Found(
            Status.WARN,
            f"{escape(name)} is another index, and {missing}: {listing([escape(one) for one in lost], SHOWN)}",
            "Remove this index if it is from an earlier save.",
            figures={"files": len(lost)},
        )


def _against(subject: Subject) -> str:
    return "" if subject.index is not None or subject.strays else "it has no index"


CHECK = Check("orphaned-shards", "the index lists all shards of the folder", _run, _against)
