"""Orthogonal matching pursuit chooses the rows and weights that mergekit's does, however the rows are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.methods.matching_pursuit import sparse_sums
from fixtures.mergekit_cases import GOLDEN, pursuits

Array = Any


class Rows:
    """Rows in memory, which are given in bands of ``size``."""

    def __init__(self, values: Array, size: int = 1000) -> None:
        self.values, self.size = values, size

    def bands(self) -> Iterator[tuple[int, Array]]:
        for first in range(0, len(self.values), self.size):
            yield first, self.values[first : first + self.size].astype("f4")

    def rows(self, indices: Sequence[int]) -> Array:
        return self.values[list(indices)].astype("f8")


def made(taken: Array, weights: Array, rows: Array) -> Array:
    return np.einsum("nk,nkd->nd", weights.astype("f8"), rows.astype("f8")[taken])


@pytest.mark.parametrize("size", [1000, 7, 1])
@pytest.mark.parametrize("name", pursuits())
def test_rows_and_weights_are_those_of_mergekit(name: str, size: int) -> None:
    with np.load(GOLDEN / "omp.npz") as recorded:
        parts = ("vectors", "rows", "taken", "weights", "taken64", "weights64")
        vectors, rows, theirs, by, theirs64, by64 = (recorded[f"{name}.{part}"] for part in parts)
    taken, weights = sparse_sums(vectors.astype("f8"), Rows(rows, size), theirs.shape[1])
    assert np.array_equal(taken, theirs)
    assert np.array_equal(taken, theirs64)
    assert np.abs(weights - by64).max() < 1e-9 * np.abs(by64).max()
    sums = made(taken, weights, rows)
    assert np.abs(sums - made(theirs, by, rows)).max() < 1e-5 * np.abs(sums).max()  # by is of single precision


@pytest.mark.parametrize("name", pursuits())
def test_what_is_left_stands_on_all_rows_that_are_taken(name: str) -> None:
    vectors, rows, picks = pursuits()[name]
    taken, weights = sparse_sums(vectors.astype("f8"), Rows(rows), picks)
    left = vectors - made(taken, weights, rows)
    assert all(len(set(own)) == picks for own in taken.tolist())
    products = np.einsum("nkd,nd->nk", rows[taken].astype("f8"), left)
    assert np.abs(products).max() < 1e-9 * np.abs(rows).max() * np.abs(vectors).max() * rows.shape[1]


def test_a_vector_that_few_rows_make_takes_no_more() -> None:
    rows = np.random.RandomState(0).standard_normal((30, 12))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = np.stack([rows[4], 2 * rows[3] - rows[8], np.zeros(12), rows[4]])
    taken, weights = sparse_sums(vectors, Rows(rows.copy()), 12)
    assert taken[0].tolist() == [4] + [-1] * 11
    assert weights[0] == pytest.approx([1.0] + [0.0] * 11)
    assert (taken[2] == -1).all()
    assert not weights[2].any()
    exact = np.where(taken[:, :, None] >= 0, rows[taken] * weights[:, :, None], 0).sum(1)
    np.testing.assert_allclose(exact, vectors, atol=1e-9)


def test_zero_rows_and_rows_that_others_make_are_never_taken() -> None:
    rows = np.random.RandomState(1).standard_normal((6, 9))
    many = np.concatenate([np.zeros((3, 9)), rows, rows[::-1], 3 * rows, np.zeros((3, 9))])
    taken, weights = sparse_sums(np.random.RandomState(2).standard_normal((4, 9)), Rows(many), 18)
    assert taken.shape == (4, 9)
    assert ((taken >= 0).sum(1) == 6).all()
    assert np.isfinite(weights).all()
    assert np.abs(weights).max() < 100
    taken, weights = sparse_sums(np.ones((1, 9)), Rows(np.zeros((4, 9))), 2)
    assert (taken == -1).all()


@pytest.mark.parametrize("size", [1000, 3])
def test_of_equal_rows_the_first_is_taken(size: int) -> None:
    rows = np.tile(np.random.RandomState(3).standard_normal((4, 33)), (50, 1))
    taken, _ = sparse_sums(rows[:4] + 0.01, Rows(rows, size), 1)
    assert taken[:, 0].tolist() == [0, 1, 2, 3]


def test_products_that_single_precision_cannot_tell_apart_are_compared_in_double_precision() -> None:
    draw = np.random.RandomState(4)
    rows = draw.standard_normal((1, 500)) + 1e-9 * np.arange(5)[:, None] * draw.standard_normal((1, 500))
    vector = draw.standard_normal((1, 500))
    wanted = int(np.argmax(np.abs(rows @ vector[0])))
    assert wanted in (0, 4)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 1, 3]):
        taken, _ = sparse_sums(vector, Rows(rows[order]), 1)
        assert order[taken[0, 0]] == wanted
