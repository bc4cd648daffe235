"""Finds the tensor at an offset of a file, for notes on ranges of zeros."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import prod
from operator import itemgetter
from typing import NamedTuple

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = ["PART", "Place", "Places", "by_role", "place_of", "places_by_file", "role_of"]

NARROW = 64
"""If the last dimension is smaller than this, as in convolutions, a row has all values of one first index."""
PART = re.compile(r"[._](?:weight\w*|blocks|qweight|qzeros|biases|\w*scales?(?:_inv)?)$")
"""Matches the end of a weight's key, such as ``.weight`` or ``.qweight``; all tensors of a weight have one role."""


class Place(NamedTuple):
    """The bytes of a tensor in its file; ``row`` is the number of bytes of a row, 0 for a vector."""

    begin: int
    end: int
    key: str
    row: int


class Places:
    """The places of the tensors that are stored as plain bytes in one file."""

    def __init__(self, by_file: Callable[[], Mapping[str, list[Place]]], name: str) -> None:
        self._by_file, self._name = by_file, name

    @cached_property
    def all(self) -> list[Place]:
        """The places of all tensors of the file, sorted by offset."""
        return sorted(self._by_file().get(self._name, ()))

    def at(self, offset: int) -> Place | None:
        """Return the place of the matrix that contains the byte at ``offset``; None if no matrix contains it."""
        number = bisect_right(self.all, offset, key=itemgetter(0)) - 1
        place = self.all[number] if number >= 0 else None
        return place if place is not None and place.row and offset < place.end else None

    def within(self, begin: int, end: int) -> list[Place]:
        """Return the places that are completely in the range from ``begin`` up to ``end`` (exclusive)."""
        first = bisect_left(self.all, begin, key=itemgetter(0))
        last = bisect_left(self.all, end, key=itemgetter(0))
        return [place for place in self.all[first:last] if place.end <= end]

    def between(self, begin: int, end: int) -> Iterator[Place]:
        """Yield the places that have bytes in the range from ``begin`` up to ``end`` (exclusive)."""
        return (place for place in self.all if place.begin < end and begin < place.end)


def places_by_file(tensors: Mapping[str, TensorInfo]) -> dict[str, list[Place]]:
    """Return the byte ranges of the tensors in each file, by the name of the file."""
    found: dict[str, list[Place]] = {}
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and info.nbytes:
            found.setdefault(info.storage.file, []).append(place_of(key, info))
    return found


def place_of(key: str, info: TensorInfo) -> Place:
    """Return the byte range of a tensor that is stored as plain bytes."""
    assert info.storage is not None
    begin = info.storage.offset + info.offset
    return Place(begin, begin + info.nbytes, key, _row(info))


def _row(info: TensorInfo) -> int:
    if len(info.shape) < 2:
        return 0
    return info.nbytes // (prod(info.shape[:-1]) if info.shape[-1] >= NARROW else info.shape[0])


def by_role(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    """Return {role (key without numbers): the keys of the tensors with this role}."""
    found: dict[str, list[str]] = {}
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and info.nbytes:
            found.setdefault(role_of(key), []).append(key)
    return found


def role_of(key: str) -> str:
    """Return the role of a tensor: its key without numbers and without an ending such as ``.weight``.

    The role of ``layers.3.q_proj.weight`` is ``layers.#.q_proj``: corresponding matrices of all layers have one role.
    """
    return NUMBER_IN_KEY.sub("#", PART.sub("", key))
