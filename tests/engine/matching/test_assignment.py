"""Linear assignment: held against all permutations of small matrices, and against a proof of optimality of larger ones."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest

from ckptsurgeon.engine.matching.assignment import assignment, solver, value_of
from ckptsurgeon.errors import ConfigError, PlanError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("kind", ["normal", "whole", "negative", "equal", "low rank", "one column"])
def test_no_other_permutation_has_a_larger_sum(size: int, kind: str) -> None:
    for seed in range(8):
        values = matrix(kind, size, seed)
        order = assignment(values)
        assert sorted(order) == list(range(size))
        best = max(sum(values[row, column] for row, column in enumerate(one)) for one in permutations(range(size)))
        assert value_of(values, order) == pytest.approx(best, rel=1e-12, abs=1e-12)


def matrix(kind: str, size: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed)
    if kind == "whole":
        return drawn.integers(-3, 4, (size, size)).astype("float64")
    if kind == "equal":
        return np.full((size, size), 2.5)
    if kind == "low rank":
        return np.outer(drawn.normal(size=size), drawn.normal(size=size))
    if kind == "one column":  # the best of all rows
        return drawn.normal(size=(size, size)) + 10.0 * (np.arange(size) == size // 2)
    values = drawn.normal(size=(size, size))
    return -abs(values) if kind == "negative" else values


def test_a_permutation_is_found_back() -> None:
    drawn = np.random.default_rng(0)
    rows, order = drawn.normal(size=(300, 40)), drawn.permutation(300)
    other = np.empty_like(rows)
    other[order] = rows  # row n of the first is row order[n] of the other
    assert assignment(rows @ other.T).tolist() == order.tolist()


def test_no_exchange_of_two_or_three_pairs_of_a_large_matrix_gains() -> None:
    values = np.random.default_rng(1).normal(size=(120, 120))
    paired = values[:, assignment(values)]  # then the diagonal has the pairs
    gain = paired + paired.T - paired.diagonal()[:, None] - paired.diagonal()[None]
    assert gain.max() <= 1e-12
    forward = paired[:, :, None] + paired[None] - paired.diagonal()[:, None, None] - paired.diagonal()[None, :, None]
    ring = forward + (paired.T - paired.diagonal()[None])[:, None, :]  # a to b, b to c, c to a
    assert ring.max() <= 1e-12


@pytest.mark.parametrize("kind", ["equal", "whole", "low rank", "normal"])
def test_ties_are_resolved_alike_each_time_and_the_matrix_is_as_before(kind: str) -> None:
    values = matrix(kind, 40, 3)
    given, before = values.copy(), np.signbit(values)
    orders = [assignment(given).tolist() for _ in range(3)]
    assert orders[0] == orders[1] == orders[2]
    assert (given == values).all()
    assert (np.signbit(given) == before).all()


def test_a_part_of_a_matrix_is_assigned_and_the_rest_is_as_before() -> None:
    values = matrix("normal", 12, 5)
    whole = values.copy()
    assert assignment(whole[4:8, 2:6]).tolist() == assignment(values[4:8, 2:6].copy()).tolist()
    assert (whole == values).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    values = matrix("normal", 4, 0)
    values[2, 1] = value
    with pytest.raises(PlanError, match="inner products of the weights are too large") as error:
        assignment(values)
    assert "ckpt check" in error.value.hint


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match="the package scipy is needed") as error:
        solver()
    assert error.value.hint == "Run pip install 'ckptsurgeon[align]'."
