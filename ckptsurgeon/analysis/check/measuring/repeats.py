"""Finds bytes that repeat earlier bytes of the same file, for example because a chunk was downloaded twice."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....storage.read.base import File
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....tensors.ops.regions import Array

__all__ = ["Repeat", "Words", "has_words", "repeats", "step_of", "words_of"]

STEP = 8192
"""The number of bytes from one compared word to the next. Programs write chunks whose size is a multiple of this."""
MOST_WORDS = 1 << 22
"""The largest number of compared words (32 MiB); the step is doubled if there would be more (over 16 GiB of values)."""
WORD = 8
"""The number of bytes of a compared word. It is large, so that few words of trained weights are equal by chance."""
GAP = 8
"""Two equal words belong to one repeat if they are at most this many steps apart."""
LONGEST = 64
"""At most this many repeats in a file are examined, the longest first."""
REACH = 1 << 16
"""At most this many bytes (or two steps, if those are more) are read to find where a repeat begins or ends."""
SHORTEST = 4096
"""The smallest number of bytes of a repeat."""
SAMPLES = 64
"""The number of places, each of ``SHORTEST`` bytes, where a long repeat is compared."""
NEAR = 32
"""A repeat begins or ends in the middle of a row if at least this many bytes of the row are on each side."""
ROW = 128
"""The smallest number of bytes of a row; the last dimensions are joined until a row has at least this many."""
VALUES = 12
"""The bytes of the row on each side must have at least this many different values: rows may begin or end with zeros."""


@dataclass(frozen=True)
class Repeat:
    """A range of bytes of ``file``, from ``begin`` to before ``end``, that equals the range ``distance`` bytes earlier.

    ``keys`` are the tensors that contain the bytes.
    """

    file: str
    begin: int
    end: int
    distance: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """Samples of 8 bytes (words) of a block, at equal distances in the file; the first is at the offset ``begin``."""

    begin: int
    values: Array


@dataclass(frozen=True)
class _Tensor:
    """The bytes of a tensor in its file; ``row`` is the number of bytes of a row."""

    begin: int
    end: int
    row: int
    key: str


def has_words(info: TensorInfo, *, is_code: bool) -> bool:
    """Return whether a tensor is searched for repeated bytes: floats and codes are, masks and indices are not."""
    return info.is_plain and (is_code or DTYPES[info.dtype].kind not in ("int", "uint", "bool"))


def step_of(nbytes: int) -> int:
    """Return the distance in bytes between two samples (see ``Words``) if ``nbytes`` bytes are read in total."""
    step = STEP
    while nbytes > step * MOST_WORDS:
        step *= 2
    return step


def words_of(raw: Array, offset: int, step: int) -> Words | None:
    """Return the samples of a block; None if it is too short for a sample.

    ``raw`` are the bytes of the block, ``offset`` is its offset in the file, ``step`` the distance between two samples.
    """
    first = -offset % step
    number = (raw.size - first - WORD) // step + 1
    if number < 1:
        return None
    return Words(offset + first, np.ndarray(number, np.uint64, raw, first, (step,)).copy())


def repeats(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], words: Mapping[str, Sequence[Words]], step: int
) -> Iterator[Repeat]:
    """Yield the repeats that begin or end in the middle of a row, and extend over several rows.

    These are faults, because programs copy whole rows (for new tokens, units or experts), or a part of each row (for
    new inputs). ``words`` has samples of each tensor: 8 bytes in each ``step`` bytes. Samples that occur in more than
    two places are left out, because they may belong to a pattern. Of a long repeat, only the bytes around its beginning
    and its end are read, and samples between them.
    """
    by_file: dict[str, list[str]] = defaultdict(list)
    for key, info in tensors.items():
        if info.is_plain and info.storage is not None:
            by_file[info.storage.file].append(key)
    for keys in by_file.values():
        found = [one for key in keys for one in words.get(key, ())]
        if found:
            file = _Repeats(checkpoint.file(tensors[keys[0]]), [_tensor(key, tensors[key]) for key in keys], step)
            yield from file.among(*_runs(found, step))


def _tensor(key: str, info: TensorInfo) -> _Tensor:
    assert info.storage is not None
    begin = info.storage.offset + info.offset
    return _Tensor(begin, begin + info.nbytes, _row(info), key)


def _row(info: TensorInfo) -> int:
    """Return the number of bytes of a row; the size of the whole tensor if its last dimensions are very small."""
    for axis in range(len(info.shape) - 1, 0, -1):
        size = info.nbytes * prod(info.shape[axis:])
        if size >= ROW * info.numel and size % info.numel == 0:
            return size // info.numel
    return info.nbytes


def _runs(found: Sequence[Words], step: int) -> tuple[Array, Array, Array]:
    """Return the longest repeats as three arrays: offset of the first sample, offset of the last sample, and distance.

    The bytes between the two offsets occur a second time, ``distance`` bytes later in the file.
    """
    values = np.concatenate([one.values for one in found])
    few = _perhaps_equal(values)
    order = few[np.argsort(values[few])]
    values = values[order]
    same = values[1:] == values[:-1]
    pair = same.copy()
    pair[1:] &= ~same[:-1]
    pair[:-1] &= ~same[1:]
    index = np.flatnonzero(pair)
    places = np.concatenate([one.begin + step * np.arange(one.values.size) for one in found]) if index.size else order
    one, other = places[order[index]], places[order[index + 1]]
    return _longest(np.minimum(one, other), np.maximum(one, other), step)


def _perhaps_equal(values: Array) -> Array:
    """Return the indices of all elements of ``values`` that equal another element, and of a few that do not.

    Sorting only these elements is faster than sorting all.
    """
    bits = min(values.size.bit_length() + 1, 24)
    slots = (values * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - bits)).astype(np.intp)
    table = np.empty(1 << bits, np.int32)
    number = np.arange(values.size, dtype=np.int32)
    table[slots] = number
    lost = np.flatnonzero(table[slots] != number)
    if not lost.size:
        return lost
    is_shared = np.zeros(1 << bits, np.bool_)
    is_shared[slots[lost]] = True
    return np.flatnonzero(is_shared[slots])


def _longest(begin: Array, other: Array, step: int) -> tuple[Array, Array, Array]:
    order = np.argsort(begin)
    begin, distance = begin[order], (other - begin)[order]
    is_first = np.ones(begin.size, np.bool_)
    is_first[1:] = (np.diff(distance) != 0) | (np.diff(begin) > GAP * step)
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:], begin.size)[: firsts.size] - 1
    sizes = begin[lasts] - begin[firsts]
    kept = np.argsort(-sizes)[:LONGEST]
    kept = np.sort(kept[(sizes[kept] > 0) & (distance[firsts[kept]] > 0)])
    return begin[firsts[kept]], begin[lasts[kept]], distance[firsts[kept]]


class _Repeats:
    """Examines the repeats in one file."""

    def __init__(self, file: File, tensors: list[_Tensor], step: int) -> None:
        self.file = file
        self.reach = max(REACH, 2 * step)
        self.tensors = sorted(tensors, key=lambda one: one.begin)
        self.begins = [one.begin for one in self.tensors]

    def among(self, firsts: Array, lasts: Array, distances: Array) -> Iterator[Repeat]:
        """Yield the repeats that begin or end in the middle of a row, which no program makes on purpose."""
        for first, last, distance in zip(firsts.tolist(), lasts.tolist(), distances.tolist(), strict=True):
            if self._is_of_several_rows(first, last, distance):
                begin, end = self._begin(first, distance), self._end(last + WORD, distance)
                is_whole = first - begin < self.reach and end - last - WORD < self.reach
                is_one = SHORTEST <= end - begin < distance + NEAR  # a pattern is longer
                if is_whole and is_one and self._is_cut(begin, end, distance) and self._is_equal(begin, end, distance):
                    keys = [
                        one.key for one in self.tensors if one.begin < end + distance and one.end > begin + distance
                    ]
                    yield Repeat(self.file.name, begin + distance, end + distance, distance, tuple(keys))

    def _at(self, place: int) -> _Tensor:
        return self.tensors[max(bisect_right(self.begins, place) - 1, 0)]

    def _is_of_several_rows(self, first: int, last: int, distance: int) -> bool:
        for begin, end in ((first, last), (first + distance, last + distance)):
            one = self._at(begin)
            if one is self._at(end) and (begin - one.begin) // one.row == (end - one.begin) // one.row:
                return False
        one = self._at(first)
        return distance >= one.row or self._at(last + distance) is not one

    def _is_equal(self, begin: int, end: int, distance: int) -> bool:
        """Return whether the bytes between the samples of a repeat are equal, too.

        A long repeat is compared only in ``SAMPLES`` places of ``SHORTEST`` bytes.
        """
        step = max(SHORTEST, (end - begin) // SAMPLES)
        sizes = ((place, min(SHORTEST, end - place)) for place in range(begin, end, step))
        return not any(self._differing(place, size, distance).size for place, size in sizes)

    def _is_cut(self, begin: int, end: int, distance: int) -> bool:
        """Return whether a repeat begins or ends in the middle of a row."""
        return self._begins_in_row(begin, distance) or self._ends_in_row(end, distance)

    def _begin(self, place: int, distance: int) -> int:
        """Return the offset at which a repeat begins: the bytes up to ``place`` recur ``distance`` bytes later."""
        number = min(self.reach, self._before(place), self._before(place + distance))
        differ = self._differing(place - number, number, distance)
        return place - number + (int(differ[-1]) + 1 if differ.size else 0)

    def _end(self, place: int, distance: int) -> int:
        number = min(self.reach, self._after(place), self._after(place + distance))
        differ = self._differing(place, number, distance)
        return place + (int(differ[0]) if differ.size else number)

    def _differing(self, place: int, number: int, distance: int) -> Array:
        return np.flatnonzero(self._read(place, number) != self._read(place + distance, number))

    def _before(self, place: int) -> int:
        """Return the number of bytes before ``place`` that tensors cover without a gap.

        Only about as many bytes as a repeat is followed back (``reach``) are counted.
        """
        index = max(bisect_right(self.begins, place) - 1, 0)
        while index and place - self.begins[index] < self.reach and self.tensors[index - 1].end == self.begins[index]:
            index -= 1
        return max(0, place - self.begins[index])

    def _after(self, place: int) -> int:
        index = max(bisect_right(self.begins, place - 1) - 1, 0)
        while (
            index + 1 < len(self.tensors)
            and self.tensors[index].end - place < self.reach
            and self.tensors[index].end == self.begins[index + 1]
        ):
            index += 1
        return max(0, self.tensors[index].end - place)

    def _begins_in_row(self, place: int, distance: int) -> bool:
        """Return whether both copies of repeated bytes, at ``place`` and ``distance`` bytes later, begin in mid-row.

        The rest of the row must also have many different values, so that a run of zeros does not count.
        """
        size = STEP
        for at in (place, place + distance):
            one = self._at(at)
            part = one.row - (at - one.begin) % one.row
            if not NEAR <= part <= one.row - NEAR:
                return False
            size = min(size, part)
        return self._is_varied(place, size)

    def _ends_in_row(self, place: int, distance: int) -> bool:
        size = STEP
        for at in (place, place + distance):
            one = self._at(at - 1)
            part = (at - one.begin) % one.row
            if not NEAR <= part <= one.row - NEAR:
                return False
            size = min(size, part)
        return self._is_varied(place - size, size)

    def _is_varied(self, place: int, number: int) -> bool:
        """Return whether the ``number`` bytes at ``place`` have at least ``VALUES`` different values.

        Many rows begin or end with zeros, which are a single value.
        """
        return int(np.count_nonzero(np.bincount(self._read(place, number), minlength=256))) >= VALUES

    def _read(self, place: int, number: int) -> Array:
        found = np.empty(number, np.uint8)
        self.file.readinto(place, found.data)
        return found
