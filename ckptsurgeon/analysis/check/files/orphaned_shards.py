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
    if index is not None and index.others:
        is_one = len(index.others) == 1
        number = f"{count(len(index.others), 'file')} {'is named like a shard' if is_one else 'are named like shards'}"
        named = listing([escape(one) for one in index.others], SHOWN)
        said = f"{number}, but {escape(index.name)} does not list {'it' if is_one else 'them'}: {named}"
        yield Found(
            Status.WARN,
            said,
            "Remove these files if they are from an earlier save.",
            figures={"files": len(index.others)},
        )


def _against(subject: Subject) -> str:
    return "" if subject.index is not None else "it has no index"


CHECK = Check("orphaned-shards", "the index lists all shards of the folder", _run, _against)
