"""Checks that no shard is missing, and that the header of each shard can be read."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape
from ..check import Check, without_files
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    if subject.unexplained:
        yield Found(Status.FAIL, subject.unexplained, "Fetch or save the whole folder again.")
    for one in subject.shards:
        if one.is_missing:
            tensors = sum(place == one.name for place in subject.index.places.values()) if subject.index else 0
            said = f"{escape(one.name)} is missing" + (f", with {count(tensors, 'tensor')}" if tensors else "")
            yield Found(Status.FAIL, said, "Fetch or save this file.", file=one.name, figures={"tensors": tensors})
        elif one.fault and (one.needed is None or one.size >= one.needed):
            said = f"{escape(one.name)} cannot be read: {escape(one.fault)}"
            yield Found(Status.FAIL, said, "Fetch or save this file again.", file=one.name)


CHECK = Check("shards", "no file is missing, and all headers can be read", _run, without_files)
