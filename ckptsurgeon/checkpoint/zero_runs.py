"""Finds tensors that are zeros because a part of the file was missing when it was copied."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from itertools import islice
from math import prod
from operator import itemgetter
from typing import NamedTuple

from ..errors import CheckpointError
from ..storage.read.base import File
from ..storage.read.local import ConsumedFile, LocalFile
from ..tensors.info import TensorInfo
from ..util.text import NUMBER_IN_KEY, count, escape, listing

__all__ = ["PAGE", "is_zero_run_note", "zero_run_notes"]

SEGMENTS = 16
"""The most parts of a file that programs usually download at once: the end of each part may be missing."""
BLOCK = 1 << 20
"""The number of bytes that are read at once."""
PAGE = 4096
"""The smallest number of missing bytes that is found."""
PROBE = 512
"""The bytes of a block that is read to find where zeros begin and end."""
NEAR = 16
"""Zeros begin or end in the middle of a row if at least this many bytes of the row are on each side."""
NARROW = 64
"""If the last dimension is smaller, as in the kernels of convolutions, a row is an element of the first dimension."""
ROLES = 2
"""The fewest roles of matrices that are lost together. New blocks may have one matrix of zeros on purpose."""
PART = re.compile(r"[._](?:weight\w*|blocks|qweight|qzeros|biases|\w*scales?(?:_inv)?)$")
"""Matches the end of the key of a weight, or of a part of a quantised weight: these parts are one matrix."""
LOOKED_AT = 4
"""How many other matrices of a role are looked at, at most."""
SAID = "the zeros begin or end in the middle of a row of "
WHOLE = "one after the other in the file, although those of other layers are not"


def zero_run_notes(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], keys: Collection[str] | None = None
) -> Iterator[str]:
    """Yield notes on tensors that are zeros because a part of the file was missing.

    Zeros that are there on purpose fill whole rows, or the same columns of several rows. So there is a note on zeros
    that begin or end in the middle of a row, and on matrices of several roles, one after the other in the file, that
    are all zeros although those of other layers are not.

    All bytes of ``keys`` are read. If it is None, a few blocks are read at the end of each part in which a file may
    have been downloaded. ``handles`` maps each ``Storage.file`` to the open file. Remote files are not read, nor are
    files with unwritten ranges.
    """
    open_files = {name: file for name, file in sorted(handles.items()) if _is_readable(file)}
    matrix, cut, whole = "", dict[str, None](), dict[str, None]()
    by_file = cache(partial(_by_file, tensors))  # only made if there are zeros, and once for all files
    by_role = cache(partial(_by_role, tensors))
    for name, file in open_files.items():
        places = _Places(by_file, name)
        with suppress(CheckpointError):  # the command reports it when it reads the values
            for begin, end in _zeros(file, places, keys):
                if at := _cut_row(file, places, begin, end):
                    matrix = matrix or at
                    cut.update(dict.fromkeys(places.between(begin, end)))
                else:
                    whole.update(dict.fromkeys(_lost_matrices(by_role, tensors, open_files, places.within(begin, end))))
    if cut:
        are = "is" if len(cut) == 1 else "are"
        yield (
            f"{count(len(cut), 'tensor')} {are} zeros, wholly or in part: {SAID}{escape(matrix)} (was a file with "
            f"missing parts copied?): {listing(list(cut))}"
        )
    if whole:
        yield (
            f"{len(whole)} matrices are all zeros, {WHOLE} (was a file with missing parts copied?): "
            f"{listing(list(whole))}"
        )


def is_zero_run_note(note: str) -> bool:
    """Return whether a note is from ``zero_run_notes``."""
    return SAID in note or WHOLE in note


def _is_readable(file: File) -> bool:
    return isinstance(file, LocalFile) and not (isinstance(file, ConsumedFile) or file.closed or file.unwritten)


def _lost_matrices(
    by_role: Callable[[], Mapping[str, list[str]]],
    tensors: Mapping[str, TensorInfo],
    files: Mapping[str, File],
    places: Sequence[_Place],
) -> Sequence[str]:
    """Return the keys of matrices that are one after the other in a file if they seem to be lost; else ().

    Their roles are their names without numbers and without ``PART``. There must be at least two roles, and for each
    role a matrix elsewhere that is not zero.
    """
    matrices = dict.fromkeys(place.key for place in places if place.row)
    roles = dict.fromkeys(map(_role, matrices))
    if len(roles) < ROLES:
        return ()
    for role in roles:
        others = islice((key for key in by_role()[role] if key not in matrices), LOOKED_AT)
        if not any(_has_values(files, tensors[key]) for key in others):
            return ()
    return list(matrices)


def _by_role(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Return the keys of tensors by their roles."""
    found: dict[str, list[str]] = {}
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and info.nbytes:
            found.setdefault(_role(key), []).append(key)
    return found


def _role(key: str) -> str:
    return NUMBER_IN_KEY.sub("#", PART.sub("", key))


def _has_values(files: Mapping[str, File], info: TensorInfo) -> bool:
    """Return whether a block in the middle of a tensor is not zero; False if its file cannot be read."""
    assert info.storage is not None
    file = files.get(info.storage.file)
    begin = info.storage.offset + info.offset + info.nbytes // 2
    return file is not None and any(file.read(begin, min(PROBE, info.nbytes - info.nbytes // 2)))


class _Place(NamedTuple):
    """The bytes of a tensor in its file; ``row`` is the number of bytes of a row, 0 for a vector."""

    begin: int
    end: int
    key: str
    row: int


class _Places:
    """The places of the tensors that are stored as plain bytes in one file."""

    def __init__(self, by_file: Callable[[], Mapping[str, list[_Place]]], name: str) -> None:
        self._by_file, self._name = by_file, name

    @cached_property
    def all(self) -> list[_Place]:
        """All places, by their offsets."""
        return sorted(self._by_file().get(self._name, ()))

    def at(self, offset: int) -> _Place | None:
        """Return the place of the matrix that contains the byte at ``offset``; None if no matrix contains it."""
        number = bisect_right(self.all, offset, key=itemgetter(0)) - 1
        place = self.all[number] if number >= 0 else None
        return place if place is not None and place.row and offset < place.end else None

    def within(self, begin: int, end: int) -> list[_Place]:
        """Return the places that are wholly in a range."""
        first = bisect_left(self.all, begin, key=itemgetter(0))
        last = bisect_left(self.all, end, key=itemgetter(0))
        return [place for place in self.all[first:last] if place.end <= end]

    def between(self, begin: int, end: int) -> Iterator[str]:
        """Yield the keys of the tensors that have bytes in the range from ``begin`` to before ``end``."""
        return (place.key for place in self.all if place.begin < end and begin < place.end)


def _by_file(tensors: Mapping[str, TensorInfo]) -> dict[str, list[_Place]]:
    """Return the places of tensors by the names of their files."""
    found: dict[str, list[_Place]] = {}
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and info.nbytes:
            begin = info.storage.offset + info.offset
            found.setdefault(info.storage.file, []).append(_Place(begin, begin + info.nbytes, key, _row(info)))
    return found


def _row(info: TensorInfo) -> int:
    if len(info.shape) < 2:
        return 0
    return info.nbytes // (prod(info.shape[:-1]) if info.shape[-1] >= NARROW else info.shape[0])


def _zeros(file: File, places: _Places, keys: Collection[str] | None) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of ranges of zeros that are in matrices."""
    end = 0
    for page in _pages_at_ends(file) if keys is None else _pages_of(file, places, keys):
        if page >= end and places.at(page) is not None and _is_zero(file, page, PAGE):
            begin, end = _around(file, page)
            yield begin, end


def _pages_at_ends(file: File) -> Iterator[int]:
    """Yield the offset of the last page of each part of a file, if this page begins with zeros."""
    if file.size > 4 * SEGMENTS * PAGE:
        ends = (file.size * number // SEGMENTS - PAGE for number in range(1, SEGMENTS + 1))
        yield from (at for at in ends if _is_zero(file, at, PROBE))


def _pages_of(file: File, places: _Places, keys: Collection[str]) -> Iterator[int]:
    """Yield the offset of each page in the tensors ``keys`` that contains only zeros."""
    for place in places.all:
        for at in range(place.begin, place.end, BLOCK) if place.key in keys else ():
            block = file.read(at, min(BLOCK, place.end - at))
            yield from (at + one for one in range(0, len(block) - PAGE + 1, PAGE) if block.startswith(bytes(PAGE), one))


def _is_zero(file: File, begin: int, nbytes: int) -> bool:
    return file.read(begin, nbytes) == bytes(nbytes)


def _around(file: File, page: int) -> tuple[int, int]:
    """Return the (begin, end) of the zeros around a page of zeros.

    Only some blocks of ``PROBE`` bytes are read, at distances that are doubled until a block is not zero, and then
    halved. So a few other bytes between the zeros may be missed.
    """
    last = page + PAGE - PROBE
    before = _steps(page // PROBE, lambda steps: _is_zero(file, page - steps * PROBE, PROBE))
    after = _steps((file.size - last) // PROBE - 1, lambda steps: _is_zero(file, last + steps * PROBE, PROBE))
    begin, end = page - before * PROBE, last + (after + 1) * PROBE
    head, tail = min(PROBE, begin), min(PROBE, file.size - end)
    more = file.read(begin - head, head), file.read(end, tail)
    return begin - head + len(more[0].rstrip(b"\0")), end + tail - len(more[1].lstrip(b"\0"))


def _steps(most: int, is_zero: Callable[[int], bool]) -> int:
    """Return the largest number of steps, up to ``most``, after which a block is zero."""
    good, step = 0, 1
    while good + step <= most and is_zero(good + step):
        good, step = good + step, 2 * step
    bad = min(good + step, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_zero(middle) else (good, middle)
    return good


def _cut_row(file: File, places: _Places, begin: int, end: int) -> str:
    """Return the key of the matrix in which a run of zeros begins or ends in the middle of a row; '' if there is none.

    The run must continue in other rows, and the same columns of the row before or after the run must not be zeros:
    otherwise the matrix may have been enlarged by columns of zeros.
    """
    one = places.at(begin)
    if one is not None:
        column = (begin - one.begin) % one.row
        rest, above = one.row - column, begin - one.row
        if min(column, rest) >= NEAR and above >= one.begin and any(file.read(above, min(rest, BLOCK))):
            more = rest + max(one.row, PAGE)
            if begin + more <= end and _is_zero(file, begin, min(more, BLOCK)):
                return one.key
    one = places.at(end)
    if one is not None:
        column = (end - one.begin) % one.row
        rest, below = one.row - column, end - column + one.row
        if min(column, rest) >= NEAR and below < one.end and any(file.read(below, min(column, BLOCK))):
            more = min(column + max(one.row, PAGE), BLOCK)
            if end - begin >= column + max(one.row, PAGE) and _is_zero(file, end - more, more):
                return one.key
    return ""
