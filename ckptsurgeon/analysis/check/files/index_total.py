"""Checks that the ``total_size`` of an index is the size of the tensors."""

from __future__ import annotations

from collections.abc import Iterator

from ....tensors.info import TensorInfo
from ....util.text import escape
from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]


def _run(subject: Subject) -> Iterator[Found]:
    index = subject.index
    if index is None:
        return
    infos = list(subject.tensors.values())
    size = sum(info.nbytes for info in infos)
    if index.total is not None and index.total not in (size, _once(infos)):
        said = f"{escape(index.name)} gives a total_size of {index.total:,} bytes, but the tensors have {size:,} bytes"
        lost = "tensors are missing or " if index.total > size else ""
        todo = f"Set total_size to the size of the tensors, unless {lost}a shard is from another model."
        yield Found(Status.WARN, said, todo, file=index.name, figures={"total": index.total, "nbytes": size})
    elif index.has_bad_total:
        said = f"{escape(index.name)} has a total_size that is not a number of bytes; the tensors have {size:,} bytes"
        todo = "Set total_size to the size of the tensors."
        yield Found(Status.WARN, said, todo, file=index.name, figures={"nbytes": size})


def _once(infos: list[TensorInfo]) -> int:
    """Return the total size of the tensors in bytes; bytes that several tensors share are counted once."""
    return sum({info.place: info.nbytes for info in infos if info.place is not None}.values())


def _against(subject: Subject) -> str:
    if subject.fault:
        return subject.fault
    return "" if subject.index is not None else "it has no index"


CHECK = Check("index-total", "total_size in the index is the size of the tensors", _run, _against)
