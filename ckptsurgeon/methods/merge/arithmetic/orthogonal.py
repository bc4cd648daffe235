"""Makes the singular vectors of several changes orthogonal to each other: the nearest orthonormal vectors."""

from __future__ import annotations

from dataclasses import dataclass

from ....tensors.ops.regions import Array
from .spectra import Changes, Components, count_above, counted, gram, product

__all__ = ["nearest_orthogonal", "orthogonal_sum"]

_ROUNDING = 2.0**-52
"""The rounding of double precision, relative to a value."""


def nearest_orthogonal(changes: Changes, vectors: Array) -> Array:
    """Return the matrix nearest to ``vectors`` whose columns (or rows, if it has more columns) are orthonormal.

    This is U V^T of the singular value decomposition U S V^T. Directions in which no vector has a component stay zero:
    for them, any orthonormal vectors would be equally near. So two equal vectors share one direction. ``changes`` has
    the array library, and the limit up to which a singular value counts as zero.
    """
    xp = changes.xp
    if not min(vectors.shape):
        return vectors
    tall = vectors.shape[0] > vectors.shape[1]
    squares, turns = xp.linalg.eigh(gram(vectors, tall=tall))
    number = counted(changes, squares.tolist())
    if number is not None:
        turns, squares = turns[:, len(squares) - number :], squares[len(squares) - number :]
        root = gram(turns / xp.sqrt(xp.sqrt(squares)), tall=False)
        near: Array = vectors @ root if tall else root @ vectors
        return near
    left, values, right = xp.linalg.svd(vectors, full_matrices=False)
    above = count_above(values, changes.nothing)
    rest: Array = left[:, :above] @ right[:above]
    return rest


def orthogonal_sum(changes: Changes, first: Components, second: Components) -> Array | None:
    """Return the sum of two matrices after their vectors were replaced by the nearest orthonormal vectors.

    ``nearest_orthogonal`` of all vectors gives the same result, but takes longer. This function is faster because the
    vectors of each matrix are orthonormal already. Returns None if they may not be orthonormal, or if there are more
    vectors than rows or columns. The new vectors of the first matrix are computed in a rotated basis; they are not
    rotated back, because the sum is the same in any basis.
    """
    if not all(_is_orthonormal(changes, one) for one in (first, second)):
        return None
    left = _pair(changes, first.left, second.left)
    right = None if left is None else _pair(changes, first.right.T, second.right.T)
    if left is None or right is None:
        return None
    inner = left.turns.T @ (first.values[:, None] * right.turns)
    rows = changes.xp.concatenate([left.turned @ inner, left.other * second.values], axis=1)
    return product(changes, rows, changes.xp.concatenate([right.turned, right.other], axis=1).T)


@dataclass(frozen=True)
class _Pair:
    """The new orthonormal columns of two matrices: ``turned`` and ``other``.

    The columns of the first matrix are ``turned``, in a basis that the rotation ``turns`` leads to.
    """

    turned: Array
    turns: Array
    other: Array


def _is_orthonormal(changes: Changes, one: Components) -> bool:
    """Return whether the singular vectors are certainly orthonormal, in spite of rounding.

    The vectors of one side were computed from products with the vectors of the other side. In such products, the
    rounding error of the largest singular value is divided by the smallest singular value, twice.
    """
    values = one.values.tolist()
    return bool(values) and changes.nothing * min(values) ** 2 > _ROUNDING * max(values) ** 2


def _pair(changes: Changes, first: Array, second: Array) -> _Pair | None:
    """Return the orthonormal columns that are nearest to the columns of ``first`` and ``second``.

    Both have orthonormal columns. So the Gram matrix R of all columns is [[1, M], [M^T, 1]], and the eigenvectors of M
    M^T give its root R^(-1/2). The blocks of this root are ``even`` and ``odd`` below: functions of the sine of each
    angle between the two spaces, written without differences of nearly equal numbers. A direction that both spaces have
    is one direction: its sine counts as zero. Returns None if there are more columns than rows, or if rounding makes
    the number of common directions uncertain.
    """
    xp = changes.xp
    if first.shape[1] + second.shape[1] > len(first):
        return None
    inner = first.T @ second
    squares, turns = xp.linalg.eigh(gram(inner, tall=False))
    squares = xp.clip(squares, 0.0, 1.0)
    cosine, sine = xp.sqrt(squares), xp.sqrt(1.0 - squares)
    number = counted(changes, sorted([*(1.0 - cosine).tolist(), *(1.0 + cosine).tolist()]))
    if number is None:
        return None
    shared = 2 * len(squares) - number  # those with the largest cosines, at the end
    sine[len(sine) - shared :] = 1.0  # any value: they are set below
    even = xp.sqrt((1.0 + sine) / 2.0) / sine
    odd = -1.0 / (sine * xp.sqrt(2.0 * (1.0 + sine)))
    rest = (1.0 + 2.0 * sine) / (2.0 * sine**2 * (1.0 + sine) * (even + 1.0))
    if shared:
        half = 0.5 / xp.sqrt(1.0 + cosine[len(sine) - shared :])
        even[len(sine) - shared :] = half
        odd[len(sine) - shared :] = half / cosine[len(sine) - shared :]
        rest[len(sine) - shared :] = (half - 1.0) / squares[len(sine) - shared :]
    turned = turns.T @ inner
    own, across = first @ turns, second @ turned.T
    both = own * even + across * odd
    own *= odd
    across *= rest
    own += across
    return _Pair(both, turns, second + own @ turned)
