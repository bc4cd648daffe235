"""Linear assignment: pairs rows and columns of a square matrix so that the sum of the pairs is the largest.

Shortest augmenting paths, as in D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions
on Aerospace and Electronic Systems 52 (4), 2016. The result is exact.
"""

from __future__ import annotations

import numpy as np

from ...tensors.ops.regions import Array

__all__ = ["assignment", "value_of"]


def assignment(values: Array) -> Array:
    """Return for each row the column that it is paired with, so that the sum of ``values`` of the pairs is largest.

    ``values`` is a square matrix of finite numbers; only one row at a time is converted to double precision. Time
    grows with the cube of its size at most; it grows with the square if most rows have their largest value in
    different columns.
    """
    size = len(values)
    columns = -_largest(values)  # duals: costs are values times -1, and reduced costs are never negative
    rows, column_of = np.empty(size), np.full(size, -1)
    row_of = np.full(size, -1)
    for row in range(size):
        reduced = _costs(values, row) - columns
        best = int(reduced.argmin())
        rows[row] = reduced[best]
        if row_of[best] < 0:
            row_of[best], column_of[row] = row, best
    for free in np.flatnonzero(column_of < 0):
        _augment(values, int(free), rows, columns, row_of, column_of)
    return column_of


def value_of(values: Array, order: Array) -> float:
    """Return the sum of the elements of ``values`` in each row and the column that ``order`` pairs with the row."""
    return float(values[np.arange(len(values)), order].sum(dtype="float64"))


def _largest(values: Array) -> Array:
    return np.asarray(values.max(axis=0), "float64")


def _costs(values: Array, row: int) -> Array:
    return -np.asarray(values[row], "float64")


def _augment(values: Array, free: int, rows: Array, columns: Array, row_of: Array, column_of: Array) -> None:
    """Pair the row ``free`` with a column: follow the shortest path to a column that has no row yet.

    The pairs along this path are changed. The arrays are changed in place.
    """
    size = len(values)
    shortest, via = np.full(size, np.inf), np.full(size, -1)
    done = np.zeros(size, bool)
    row, column, length, reached = free, -1, 0.0, [free]
    while True:
        found = _costs(values, row) - columns
        found += length - rows[row]
        better = (found < shortest) & ~done
        shortest[better], via[better] = found[better], row
        column = int(np.where(done, np.inf, shortest).argmin())
        length = float(shortest[column])
        done[column] = True
        if row_of[column] < 0:
            break
        row = int(row_of[column])
        reached.append(row)
    rows[free] += length
    for one in reached[1:]:
        rows[one] += length - shortest[column_of[one]]
    columns[done] -= length - shortest[done]
    while True:
        row = int(via[column])
        former = int(column_of[row])
        row_of[column], column_of[row] = row, column
        if row == free:
            return
        column = former
