"""Checks that every record of a file matches the checksum that the file stores for it."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_files
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    bad = subject.bad_checksums
    if bad:
        named = listing([escape(one) for one in bad], SHOWN)
        said = f"{count(len(bad), 'record')} of {subject.checksums:,} do not match the checksum in the file: {named}"
        todo = "The file is damaged: fetch or save it again."
        yield Found(Status.FAIL, said, todo, figures={"records": len(bad), "checked": subject.checksums})


def _against(subject: Subject) -> str:
    return without_files(subject) or ("" if subject.checksums else f"{subject.format} files have no checksums")


def _looks_at(subject: Subject) -> str:
    return count(subject.checksums, "record")


CHECK = Check("checksums", "bytes match the checksums in the file", _run, _against, _looks_at)
