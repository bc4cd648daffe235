"""Compares float16 with bfloat16: both may be roundings of one network, and then few elements are equal after a cast.

Each line of a matrix is described by a few random projections. Rounding hardly changes the projections, but different
lines have different projections (random projections keep distances: Johnson and Lindenstrauss, 1984). Lines with nearly
equal projections get the same number, which is used as their fingerprint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from ....checkpoint.checkpoint import Checkpoint
from ....engine.compute.column_bands import BandedFiles, OpenFiles, banded
from ....engine.compute.reading import read_part
from ....tensors.info import TensorInfo
from ....tensors.ops.casts import cast
from ....tensors.ops.regions import Box, blocks
from .line_fingerprints import ELEMENTS, Lines, ends_of, mixed

__all__ = ["Numbers", "Projections", "are_near", "numbered", "projected_lines", "projected_sample", "rounded_lines"]

Numbers = npt.NDArray[np.float64]
Projections = Numbers
"""For each line, its projections relative to its norm, and the logarithm of the norm."""
DIRECTIONS = 8
NEAR = 0.012
"""Projections of a line in float16 and bfloat16 may differ by this much; rounding changes them by about 0.001."""
CELL = 4 * NEAR
"""Lines with nearly equal projections are searched in a grid with cells of this size."""
SEARCHED = 4
"""The number of dimensions of the grid: so many projections select a cell; then all projections are compared."""
CANDIDATES = 16
"""At most this many lines of a cell are compared; for equal lines, one would suffice."""


def _directions(begin: int, end: int) -> Numbers:
    """Return a random number from -1 to 1 for each position in a line and each projection."""
    numbers = np.arange(begin * DIRECTIONS + 1, end * DIRECTIONS + 1, dtype=np.uint64)
    numbers = mixed(numbers * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((numbers >> np.uint64(11)) * 2.0**-52 - 1.0, np.float64).reshape(-1, DIRECTIONS)


def _values(files: OpenFiles | BandedFiles, info: TensorInfo, box: Box) -> Numbers:
    values = cast(read_part(files, info, box), info.dtype, "float64")[0]
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def projected_lines(source: Checkpoint, info: TensorInfo) -> tuple[Projections, Projections]:
    """Return the projections of the rows and of the columns of a matrix, which is read once, block by block."""
    sides = [np.zeros((size, DIRECTIONS + 1)) for size in info.shape]
    files = banded(info, source)
    for box in blocks(info.shape, ELEMENTS):
        (top, bottom), (left, right) = box
        values = _values(files, info, box).reshape(bottom - top, right - left)
        for side, part, lines, begin, end in ((0, values, box[0], left, right), (1, values.T, box[1], top, bottom)):
            sides[side][slice(*lines), :-1] += part @ _directions(begin, end)
            sides[side][slice(*lines), -1] += (part * part).sum(axis=1)
    return _scaled(sides[0]), _scaled(sides[1])


def projected_sample(source: Checkpoint, info: TensorInfo) -> Projections:
    """Return the projections of a tensor's first and last elements, as one line; of all elements if these are equal."""
    found, is_constant = _projected(source, info, ends_of(info.shape))
    return _projected(source, info, blocks(info.shape, ELEMENTS))[0] if is_constant else found


def _projected(source: Checkpoint, info: TensorInfo, boxes: Iterable[Box]) -> tuple[Projections, bool]:
    """Return the projections of the parts ``boxes`` of a tensor, and whether all elements of the parts are equal."""
    found, at, range_ = np.zeros((1, DIRECTIONS + 1)), 0, [np.inf, -np.inf]
    for box in boxes:
        values = _values(source, info, box).reshape(-1)
        found[0, :-1] += values @ _directions(at, at + len(values))
        found[0, -1] += (values * values).sum()
        range_ = [min(range_[0], values.min()), max(range_[1], values.max())]
        at += len(values)
    return _scaled(found), range_[0] == range_[1]


def _scaled(found: Numbers) -> Projections:
    norms = np.sqrt(found[:, -1:] / 3)
    projections = np.divide(found[:, :-1], norms, out=np.zeros_like(found[:, :-1]), where=norms > 0)
    return np.hstack([projections, np.log(np.maximum(norms, 2.0**-149))])


def are_near(one: Projections, other: Projections) -> bool:
    """Return whether two lines may be roundings of the same numbers."""
    return bool((np.abs(one - other) <= NEAR).all())


def numbered(here: Projections, there: Projections) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return, for each line of two models, an id; lines with nearly equal projections have the same id."""
    lines = np.vstack([here, there])
    first = _first_near(lines).astype(np.uint64)
    return first[: len(here)], first[len(here) :]


def _first_near(lines: Projections) -> npt.NDArray[np.int64]:
    """Return, for each line, the index of the first line with nearly equal projections, perhaps the line itself."""
    cells = np.floor(lines[:, :SEARCHED] / CELL).astype(np.int64)
    upper = lines[:, :SEARCHED] / CELL - cells >= 0.5
    keys = _keys(cells)
    order = np.argsort(keys, kind="stable")
    found = np.arange(len(lines))
    for beside in product((0, 1), repeat=SEARCHED):
        near = _keys(cells + np.where(beside, np.where(upper, 1, -1), 0))
        begin = np.searchsorted(keys[order], near, "left")
        end = np.searchsorted(keys[order], near, "right")
        for step in range(CANDIDATES):
            at = np.flatnonzero(begin + step < end)
            if not len(at):
                break
            other = order[begin[at] + step]
            is_near = (np.abs(lines[at] - lines[other]) <= NEAR).all(axis=1)
            found[at[is_near]] = np.minimum(found[at[is_near]], other[is_near])
    return found


def _keys(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    key = np.zeros(len(cells), np.uint64)
    for column in cells.T:
        key = mixed(key * np.uint64(3) + column.astype(np.uint64) + np.uint64(1))
    return key


Sided = tuple[Checkpoint, TensorInfo]


def rounded_lines(here: Sequence[Sided], there: Sequence[Sided]) -> tuple[list[Lines], list[Lines]]:
    """Return the fingerprints of matrices of two models; lines that differ only by rounding have equal fingerprints."""
    found = [[projected_lines(*one) for one in side] for side in (here, there)]
    numbers: dict[tuple[int, int, int], npt.NDArray[np.uint64]] = {}
    for places in _by_length((here, there)).values():
        sides = [[place for place in places if place[0] == side] for side in (0, 1)]
        stacked = [
            np.vstack([np.zeros((0, DIRECTIONS + 1)), *(found[side][at][axis] for side, at, axis in some)])
            for some in sides
        ]
        for some, ids in zip(sides, numbered(stacked[0], stacked[1]), strict=True):
            ends = np.cumsum([len(found[side][at][axis]) for side, at, axis in some])
            numbers |= dict(zip(some, np.split(ids, ends[:-1]) if len(ends) else [], strict=True))
    return _lines(0, len(here), numbers), _lines(1, len(there), numbers)


def _lines(side: int, number: int, numbers: dict[tuple[int, int, int], npt.NDArray[np.uint64]]) -> list[Lines]:
    return [Lines(numbers[side, at, 0], numbers[side, at, 1]) for at in range(number)]


def _by_length(sides: Iterable[Sequence[Sided]]) -> dict[int, list[tuple[int, int, int]]]:
    """Return {length: (side, index of the matrix, axis) of all rows or columns with this length}."""
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for side, matrices in enumerate(sides):
        for at, (_, info) in enumerate(matrices):
            for axis in (0, 1):
                found[info.shape[1 - axis]].append((side, at, axis))
    return found
