"""Every byte of a file belongs to exactly one tensor, and every tensor has the bytes of its shape."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "Save this file again: another reader may take other bytes for these tensors, or refuse the file."


def _run(subject: Subject) -> Iterator[Found]:
    for one in subject.shards:
        wrong = [f"{escape(key)}: {why}" for key, why in one.unsound.items()]
        for what, told in (("overlap", one.overlaps), ("hole", one.holes), ("entry that is not valid", wrong)):
            if told:
                plural = "entries that are not valid" if what.startswith("entry") else ""
                said = f"{escape(one.name)} has {count(len(told), what, plural)}: {listing(list(told), 2)}"
                yield Found(Status.FAIL, said, ADVICE, tuple(one.unsound), one.name, {"number": len(told)})


CHECK = Check("offsets", "every byte belongs to one tensor", _run)
