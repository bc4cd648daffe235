"""Orthogonal matching pursuit: vectors as weighted sums of few rows of a matrix.

Each step takes the row that has the largest product with the residual, and projects the vector onto all rows taken so
far (Pati, Rezaiifar and Krishnaprasad 1993). https://arxiv.org/abs/2506.06607 makes the rows
of new tokens in this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = ["Atoms", "sparse_sums"]

Array: TypeAlias = "np.ndarray[Any, Any]"

TIE = 1e-3
"""Products in single precision that differ by less than this share of the largest are compared in double precision."""
CANDIDATES = 16
"""The most rows whose products are compared in double precision, for each vector and step."""
SMALLEST = np.float32(1e-38)
"""A product below this counts as zero."""
EXACT = 1e-9
"""If the length of the residual is at most this share of the vector's length, no further row is added to the sum."""
DEPENDENT = 1e-8
"""A row counts as a weighted sum of the rows taken so far if at most this share of it is orthogonal to all of them."""


class Atoms(Protocol):
    """The rows of a matrix whose weighted sums replace vectors; they need not be in memory all at once."""

    def bands(self) -> Iterator[tuple[int, Array]]:
        """Yield ranges of rows, in order: the index of the first row, and the rows as float32."""
        ...

    def rows(self, indices: Sequence[int]) -> Array:
        """Return the rows with the given indices, as float64."""
        ...


def sparse_sums(vectors: Array, atoms: Atoms, most: int) -> tuple[Array, Array]:
    """Return, for each vector, the indices of at most ``most`` rows of ``atoms`` and the weight of each row.

    The sum of the rows times their weights is near the vector. ``vectors`` are float64. Both results have the shape
    (vectors, terms); terms is ``most``, but at most the length of a vector, since that many rows suffice for any
    vector. If fewer rows suffice, the other indices are -1, and their weights 0. Of rows with the same product, the
    first is taken. Products are computed in single precision. Nearly equal products are computed again in double
    precision, so that the choice does not depend on the processor.
    """
    number, size = vectors.shape
    most = min(most, size)
    taken = np.full((number, most), -1, "i8")
    basis = np.zeros((number, most, size))
    triangle = np.zeros((number, most, most))
    triangle[:] = np.eye(most)
    along = np.zeros((number, most))
    left, length = vectors.copy(), np.linalg.norm(vectors, axis=1)
    active = np.flatnonzero(length > 0)
    for step in range(most):
        active = active[np.linalg.norm(left[active], axis=1) > EXACT * length[active]]
        if not len(active):
            break
        chosen = _chosen(left[active], taken[active, :step], atoms)
        active, chosen = active[chosen >= 0], chosen[chosen >= 0]
        rows = atoms.rows(chosen.tolist())
        parts, new = _orthogonal(basis[active, :step], rows)
        size_of_new = np.linalg.norm(new, axis=1)
        is_new = size_of_new > DEPENDENT * np.linalg.norm(rows, axis=1)
        active, parts, new, size_of_new = active[is_new], parts[is_new], new[is_new], size_of_new[is_new]
        unit = new / size_of_new[:, None]
        taken[active, step], basis[active, step] = chosen[is_new], unit
        triangle[active, :step, step], triangle[active, step, step] = parts, size_of_new
        along[active, step] = (unit * vectors[active]).sum(1)
        left[active] -= unit * (unit * left[active]).sum(1, keepdims=True)
    weights = np.linalg.solve(triangle, along[:, :, None])[:, :, 0]
    weights[taken < 0] = 0.0
    return taken, weights


def _orthogonal(basis: Array, rows: Array) -> tuple[Array, Array]:
    """Return the product of each row with each vector of its basis, and the part of the row orthogonal to the basis.

    Each row has an orthonormal basis of its own: ``basis`` has the shape (rows, vectors, length). The products are
    computed twice, to correct rounding errors.
    """
    parts, new = np.zeros(basis.shape[:2]), rows
    for _ in range(2):
        more = np.matmul(basis, new[:, :, None])[:, :, 0]
        new = new - np.matmul(more[:, None, :], basis)[:, 0]
        parts += more
    return parts, new


def _chosen(left: Array, taken: Array, atoms: Atoms) -> Array:
    """Return, for each residual in ``left``, the index of the row with the largest product; -1 if all products are 0.

    ``taken`` has, for each residual, the indices of the rows that are already in its sum; these are left out.
    """
    units = (left / np.linalg.norm(left, axis=1, keepdims=True)).astype("f4")
    best = np.zeros(len(left), "f4")
    found: list[tuple[Array, Array, Array]] = []
    for first, band in atoms.bands():
        products = units @ band.T
        np.abs(products, out=products)
        vectors, columns = np.nonzero((taken >= first) & (taken < first + len(band)))
        products[vectors, taken[vectors, columns] - first] = 0
        np.maximum(best, products.max(1), out=best)
        least = np.maximum(best * np.float32(1 - TIE), SMALLEST)
        vectors, places = np.divmod(np.flatnonzero(products >= least[:, None]), len(band))
        found.append((vectors, places + first, products[vectors, places]))
    vectors, places, products = (np.concatenate([one[part] for one in found]) for part in range(3))
    near = products >= best[vectors] * np.float32(1 - TIE)
    return _decided(left, vectors[near], places[near], products[near], atoms)


def _decided(left: Array, vectors: Array, places: Array, products: Array, atoms: Atoms) -> Array:
    """Return, for each residual in ``left``, the index of the candidate with the largest product; -1 for none.

    The candidates of a residual are rows whose products with it are nearly equal, so they are computed again in double
    precision. For each candidate, ``vectors`` has the index of the residual, ``places`` the index of the row, and
    ``products`` their product in single precision.
    """
    order = np.lexsort((places, -products, vectors))
    vectors, places = vectors[order], places[order]
    chosen = np.full(len(left), -1, "i8")
    begins = np.searchsorted(vectors, np.arange(len(left) + 1))
    for vector, (begin, end) in enumerate(pairwise(begins)):
        own = np.sort(places[begin : min(end, begin + CANDIDATES)])
        if len(own) > 1:
            exact = np.abs((atoms.rows(own.tolist()) * left[vector]).sum(1))
            own = own[exact >= exact.max() * (1 - 1e-12)]
        chosen[vector] = own[0] if len(own) else -1
    return chosen
