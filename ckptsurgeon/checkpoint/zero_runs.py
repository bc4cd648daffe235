"""Finds tensors that are zeros in part because a part of the file was missing when it was copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from math import prod
from operator import itemgetter
from typing import NamedTuple

from ..errors import CheckpointError
from ..storage.read.base import File
from ..storage.read.local import ConsumedFile, LocalFile
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing

__all__ = ["PAGE", "is_zero_run_note", "zero_run_notes"]

SEGMENTS = 16
"""The most parts of a file that programs usually download at once: the end of each part may be missing."""
BLOCK = 1 << 20
"""The number of bytes that are read at once."""
PAGE = 4096
"""The smallest number of missing bytes that is found."""
NEAR = 16
"""Zeros begin or end in the middle of a row if at least this many bytes of the row are on each side."""
NARROW = 64
"""If the last dimension is smaller, as in the kernels of convolutions, a row is an element of the first dimension."""
SAID = "the zeros begin or end in the middle of a row of "


def zero_run_notes(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], keys: Collection[str] | None = None
) -> Iterator[str]:
    """Yield a note on tensors that are zeros in part, if these zeros begin or end in the middle of a row.

    Zeros that are there on purpose fill whole rows, or the same columns of several rows. All bytes of ``keys`` are
    read. If it is None, one page is read at the end of each part in which a file may have been downloaded. ``handles``
    maps each ``Storage.file`` to the open file. Remote files, and files with unwritten ranges, are not read.
    """
    matrix, found = "", dict[str, None]()
    for name, file in sorted(handles.items()):
        if isinstance(file, LocalFile) and not (isinstance(file, ConsumedFile) or file.closed or file.unwritten):
            places = _Places(tensors, name)
            with suppress(CheckpointError):  # the command reports it when it reads the values
                for cut, begin, end in _lost_parts(file, places, keys):
                    matrix = matrix or cut
                    found.update(dict.fromkeys(places.between(begin, end)))
    if found:
        are = "is" if len(found) == 1 else "are"
        yield (
            f"{count(len(found), 'tensor')} {are} zeros, wholly or in part: {SAID}{escape(matrix)} (was a file with "
            f"missing parts copied?): {listing(list(found))}"
        )


def is_zero_run_note(note: str) -> bool:
    """Return whether a note is from ``zero_run_notes``."""
    return SAID in note


class _Place(NamedTuple):
    """The bytes of a tensor in its file; ``row`` is the number of bytes of a row, 0 for a vector."""

    begin: int
    end: int
    key: str
    row: int


class _Places:
    """The places of the tensors that are stored as plain bytes in one file."""

    def __init__(self, tensors: Mapping[str, TensorInfo], name: str) -> None:
        self._tensors, self._name = tensors, name

    @cached_property
    def all(self) -> list[_Place]:
        """All places, by their offsets."""
        return sorted(
            _Place(info.storage.offset + info.offset, info.storage.offset + info.offset + info.nbytes, key, _row(info))
            for key, info in self._tensors.items()
            if info.storage is not None and info.storage.file == self._name and info.is_plain and info.nbytes
        )

    def at(self, offset: int) -> _Place | None:
        """Return the place of the matrix that contains the byte at ``offset``; None if no matrix contains it."""
        number = bisect_right(self.all, offset, key=itemgetter(0)) - 1
        place = self.all[number] if number >= 0 else None
        return place if place is not None and place.row and offset < place.end else None

    def between(self, begin: int, end: int) -> Iterator[str]:
        """Yield the keys of the tensors that have bytes in the range from ``begin`` to before ``end``."""
        return (place.key for place in self.all if place.begin < end and begin < place.end)


def _row(info: TensorInfo) -> int:
    if len(info.shape) < 2:
        return 0
    return info.nbytes // (prod(info.shape[:-1]) if info.shape[-1] >= NARROW else info.shape[0])


def _lost_parts(file: File, places: _Places, keys: Collection[str] | None) -> Iterator[tuple[str, int, int]]:
    """Yield the ranges of zeros that begin or end in the middle of a row, each with the key of that matrix."""
    end = 0
    for page in _pages_at_ends(file) if keys is None else _pages_of(file, places, keys):
        if page >= end:
            begin, end = _around(file, page)
            cut = _cut_row(file, places, begin, end)
            if cut:
                yield cut, begin, end


def _pages_at_ends(file: File) -> Iterator[int]:
    """Yield the offset of the last page of each part of a file, if this page contains only zeros."""
    if file.size > 4 * SEGMENTS * PAGE:
        ends = (file.size * number // SEGMENTS - PAGE for number in range(1, SEGMENTS + 1))
        yield from (at for at in ends if file.read(at, PAGE) == bytes(PAGE))


def _pages_of(file: File, places: _Places, keys: Collection[str]) -> Iterator[int]:
    """Yield the offset of each page in the tensors ``keys`` that contains only zeros."""
    for place in places.all:
        for at in range(place.begin, place.end, BLOCK) if place.key in keys else ():
            block = file.read(at, min(BLOCK, place.end - at))
            yield from (at + one for one in range(0, len(block) - PAGE + 1, PAGE) if block.startswith(bytes(PAGE), one))


def _around(file: File, page: int) -> tuple[int, int]:
    """Return the (begin, end) of the zeros around a page of zeros."""
    begin, end = page, page + PAGE
    while begin > 0:
        size = min(BLOCK, begin)
        others = len(file.read(begin - size, size).rstrip(b"\0"))
        begin -= size - others
        if others:
            break
    while end < file.size:
        size = min(BLOCK, file.size - end)
        others = len(file.read(end, size).lstrip(b"\0"))
        end += size - others
        if others:
            break
    return begin, end


def _cut_row(file: File, places: _Places, begin: int, end: int) -> str:
    """Return the key of the matrix in which a run of zeros begins or ends in the middle of a row; '' if there is none.

    The run must continue in other rows, and the same columns of the row before or after the run must not be zeros:
    otherwise the matrix may have been enlarged by columns of zeros.
    """
    one = places.at(begin)
    if one is not None:
        column = (begin - one.begin) % one.row
        rest, above = one.row - column, begin - one.row
        goes_on = end >= begin + rest + max(one.row, PAGE)
        if min(column, rest) >= NEAR and goes_on and above >= one.begin and any(file.read(above, rest)):
            return one.key
    one = places.at(end)
    if one is not None:
        column = (end - one.begin) % one.row
        rest, below = one.row - column, end - column + one.row
        goes_on = begin <= end - column - max(one.row, PAGE)
        if min(column, rest) >= NEAR and goes_on and below < one.end and any(file.read(below, column)):
            return one.key
    return ""
