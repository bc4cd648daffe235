"""Finds the lines (rows or columns) of a matrix among the lines of many matrices, by their fingerprints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ....tensors.info import TensorInfo
from .line_fingerprints import Hashes, Lines

__all__ = ["COLUMNS", "ROWS", "Found", "Matrix", "Pool"]

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of a model; if it is in a stack of matrices, ``stack`` is the key of the stack.

    ``index`` is its index in the stack. ``name`` is its key; in a stack, the key of the stack and the index, as in
    ``experts.w1.0``.
    """

    name: str
    info: TensorInfo
    lines: Lines
    stack: str = ""
    index: int = 0

    def along(self, axis: int) -> Hashes:
        """Return the fingerprints of the rows (ROWS) or of the columns (COLUMNS)."""
        return self.lines.rows if axis == ROWS else self.lines.columns


@dataclass(frozen=True, eq=False)
class Found:
    """The rows or columns (``axis``) of ``matrix`` are rows or columns (``inner``) of ``inside``, at ``positions``."""

    matrix: Matrix
    axis: int
    inside: Matrix
    inner: int
    positions: npt.NDArray[np.int64]


@dataclass
class _Lines:
    """All lines of one length, sorted by their fingerprints."""

    hashes: Hashes
    matrices: npt.NDArray[np.int64]
    """For each line, twice the index of its matrix, plus 1 if it is a column."""


@dataclass
class Pool:
    """The lines of the matrices of one model."""

    matrices: Sequence[Matrix]
    _by_length: dict[int, _Lines] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found: dict[int, list[tuple[Hashes, int]]] = defaultdict(list)
        seen: set[tuple[int, bytes]] = set()
        for number, matrix in enumerate(self.matrices):
            for axis in (ROWS, COLUMNS):
                hashes = matrix.along(axis)
                length = matrix.info.shape[1 - axis]
                if (print_ := (length, hashes.tobytes())) not in seen:  # of copies, only the first is searched
                    seen.add(print_)
                    found[length].append((hashes, 2 * number + axis))
        for length, several in found.items():
            hashes = np.concatenate([one for one, _ in several])
            owners = np.concatenate([np.full(len(one), owner) for one, owner in several])
            order = np.argsort(hashes, kind="stable")
            self._by_length[length] = _Lines(hashes[order], owners[order])

    def find(self, matrix: Matrix) -> Found | None:
        """Return the positions of all lines of ``matrix`` in one other matrix; None if no matrix has all of them."""
        return self._find(matrix, ROWS) or self._find(matrix, COLUMNS)

    def _find(self, matrix: Matrix, axis: int) -> Found | None:
        lines, hashes = self._by_length.get(matrix.info.shape[1 - axis]), matrix.along(axis)
        if lines is None or not len(hashes):
            return None
        left = np.searchsorted(lines.hashes, hashes, "left")
        number = np.searchsorted(lines.hashes, hashes, "right") - left
        if not number.all() or not (number == 1).any():
            return None
        owners = np.unique(lines.matrices[left[number == 1]])
        if len(owners) != 1:
            return None
        inside, inner = self.matrices[int(owners[0]) // 2], int(owners[0]) % 2
        positions = _positions(hashes, inside.along(inner))
        return None if positions is None else Found(matrix, axis, inside, inner, positions)


def _positions(lines: Hashes, inside: Hashes) -> npt.NDArray[np.int64] | None:
    """Return the position of each of ``lines`` among the lines ``inside`` of a matrix; no position occurs twice.

    Returns None if a line has no position.
    """
    if len(lines) > len(inside):
        return None
    order = np.argsort(inside, kind="stable")
    hashes = inside[order]
    left = np.searchsorted(hashes, lines, "left")
    number = np.searchsorted(hashes, lines, "right") - left
    if not number.all():
        return None
    positions = order[left].astype(np.int64)
    if (number > 1).any():
        _separate(positions, left, number, order)
    return positions if len(np.unique(positions)) == len(positions) else None


def _separate(
    positions: npt.NDArray[np.int64],
    left: npt.NDArray[np.int64],
    number: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
) -> None:
    """Change ``positions`` so that lines with equal fingerprints have different positions.

    Such a line gets the position after the position of the previous line if possible, else the first free position.
    """
    taken = set(positions[number == 1].tolist())
    following: dict[int, int] = {}
    for at in np.flatnonzero(number > 1).tolist():
        options = order[left[at] : left[at] + number[at]]
        next_ = int(positions[at - 1]) + 1 if at else int(options[0])
        place = int(np.searchsorted(options, next_))
        if place < len(options) and int(options[place]) == next_ and next_ not in taken:
            positions[at] = next_
        else:
            first = following.get(int(left[at]), 0)
            while first < len(options) and int(options[first]) in taken:
                first += 1
            following[int(left[at])] = first
            positions[at] = int(options[min(first, len(options) - 1)])
        taken.add(int(positions[at]))
