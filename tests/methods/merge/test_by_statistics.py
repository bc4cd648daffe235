"""RegMean and Fisher merging do what their papers say: formulas in double precision, and what they minimise.

FusionBench's ``regmean.merging_with_regmean_weights`` and ``fisher_merging.merging_with_fisher_weights`` are the same
formulas, but for FusionBench's floor, which is added to the Fisher information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.errors import CheckpointError, PlanError
from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.merge_arrays import METHODS, merge

SHAPES = [(6, 9), (9, 6), (8, 8), (1, 5), (40, 3)]


def inputs(size: int, models: int, rows: int = 50) -> list[Array]:
    draw = np.random.default_rng(size)
    mixed = [draw.standard_normal((size, size)) for _ in range(models)]
    return [draw.standard_normal((rows, size)) @ one for one in mixed]


def drawn(shape: tuple[int, ...], models: int = 3) -> list[Array]:
    return [np.random.default_rng(number).standard_normal(shape) for number in range(models)]


def grams(given: Sequence[Array]) -> list[Array]:
    return [one.T @ one / len(one) for one in given]


def error(made: Array, wanted: Array) -> float:
    return float(np.max(np.abs(made.astype("f8") - wanted)) / np.max(np.abs(wanted)))


def by_formula(models: Sequence[Array], found: Sequence[Array], alpha: float) -> Array:
    """RegMean as in section 3.3 of arXiv 2212.09849: (sum G)^-1 sum G W, with W (inputs, outputs)."""
    scaled = [alpha * one + (1 - alpha) * np.diag(np.diag(one)) for one in found]
    total = sum(gram @ model.T for gram, model in zip(scaled, models, strict=True))
    made: Array = np.linalg.solve(np.sum(scaled, 0), total).T
    return made


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-5), ("f8", 1e-10)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_regmean_is_the_papers_formula(
    shape: tuple[int, int], alpha: float, turned: bool, dtype: str, bound: float
) -> None:
    models, found = drawn(shape), grams(inputs(shape[1], 3))
    wanted = by_formula(models, found, alpha)
    given = [(one.T if turned else one).astype(dtype) for one in models]
    for limit in (1 << 20, shape[1]):  # whole, and row by row
        made = merge("regmean", given, _grams=found, _turned=turned, limit=limit, alpha=alpha, ridge=0.0)
        assert made.dtype == np.dtype(dtype)
        assert error(made.T if turned else made, wanted) <= bound


def test_regmean_minimises_the_differences_of_the_outputs() -> None:
    """The sum over all models of |X_i W - X_i W_i|^2, which least squares find from the inputs themselves."""
    given, models = inputs(7, 3), drawn((5, 7))
    rows = np.concatenate(given)
    outputs = np.concatenate([one @ model.T for one, model in zip(given, models, strict=True)])
    wanted = np.linalg.lstsq(rows, outputs, rcond=None)[0].T
    made = merge("regmean", models, _grams=grams(given), alpha=1.0, ridge=0.0)
    assert error(made, wanted) < 1e-10
    mean = np.mean(models, 0)
    loss = [np.sum((rows @ one.T - outputs) ** 2) for one in (made, mean)]
    assert loss[0] < 0.7 * loss[1]


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_equal_gram_matrices_give_the_mean(ridge: float) -> None:
    models, (found,) = drawn((5, 7)), grams(inputs(7, 1))
    made = merge("regmean", models, _grams=[found] * 3, ridge=ridge)
    assert error(made, np.mean(models, 0)) < 1e-10
    made = merge("regmean", models, _grams=[found] * 3, weight=[1, 1, 2])
    assert error(made, (models[0] + models[1] + 2 * models[2]) / 4) < 1e-10


@pytest.mark.parametrize("turned", [False, True])
def test_a_model_merged_with_itself_is_unchanged(turned: bool) -> None:
    (one,) = drawn((7, 7), 1)
    one = one.astype("f4")
    made = merge("regmean", [one] * 3, _grams=grams(inputs(7, 3)), _turned=turned)
    assert np.array_equal(made, one)
    assert np.array_equal(merge("fisher", [one] * 3, _statistics=[np.abs(one), one**2, one**4]), one)


def test_inputs_that_no_model_has_get_the_mean() -> None:
    given, models = inputs(7, 2), drawn((5, 7), 2)
    for one in given:
        one[:, 3] = 0  # as a channel after a ReLU may be
    with pytest.raises(PlanError, match="has no inverse") as raised:
        merge("regmean", models, _grams=grams(given), ridge=0.0)
    assert "ridge=1e-6" in raised.value.hint
    made = merge("regmean", models, _grams=grams(given))
    assert error(made[:, 3], np.mean(models, 0)[:, 3]) < 1e-10
    kept = [0, 1, 2, 4, 5, 6]
    alone = [one[np.ix_(kept, kept)] for one in grams(given)]
    assert error(made[:, kept], by_formula([one[:, kept] for one in models], alone, 0.9)) < 1e-5
    assert error(merge("regmean", models, _grams=[np.zeros((7, 7))] * 2), np.mean(models, 0)) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-5), ("f8", 1e-10)])
@pytest.mark.parametrize("shape", [*SHAPES, (7,), (), (2, 3, 4)])
def test_fisher_is_the_papers_formula(shape: tuple[int, ...], dtype: str, bound: float) -> None:
    """Equation 3 of arXiv 2111.09832: sum_i c_i F_i W_i / sum_i c_i F_i, with small F_i raised to a floor."""
    models, floor, weights = drawn(shape), 0.05, [0.2, 0.3, 1.5]
    found = [one**2 for one in drawn(shape, 6)[3:]]
    shares = [np.maximum(one, floor) * weight for one, weight in zip(found, weights, strict=True)]
    wanted = np.asarray(np.sum([a * b for a, b in zip(shares, models, strict=True)], 0) / np.sum(shares, 0))
    given = [np.asarray(one, dtype) for one in models]
    statistics = [np.asarray(one, dtype) for one in found]
    for limit in (1 << 20, 4):
        made = merge("fisher", given, _statistics=statistics, limit=limit, weight=weights, floor=floor)
        assert (made.dtype, made.shape) == (np.dtype(dtype), shape)
        assert error(made, wanted) <= bound


def test_elements_without_fisher_information_are_averaged() -> None:
    models = [np.array([1.0, 5.0]), np.array([3.0, 1.0])]
    made = merge("fisher", models, _statistics=[np.array([0.0, 1.0]), np.array([0.0, 3.0])], floor=0.0)
    assert np.allclose(made, [2.0, 2.0])
    made = merge("fisher", models, _statistics=[np.zeros(2), np.zeros(2)], floor=0.0, weight=[1, 3])
    assert np.allclose(made, [2.5, 2.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_statistics_that_are_no_numbers_are_an_error(bad: float) -> None:
    models = drawn((3, 3), 2)
    fishers, found = [np.ones((3, 3)), np.ones((3, 3))], [np.eye(3), np.eye(3)]
    fishers[1][0, 0] = found[1][0, 0] = bad
    with pytest.raises(PlanError, match="information of model 2"):
        merge("fisher", models, _statistics=fishers)
    if bad != -1.0:
        with pytest.raises(PlanError, match="matrix of model 2"):
            merge("regmean", models, _grams=found)


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("regmean", {"weight": [0, 0]}, "zero"), ("fisher", {"weight": [0, 0]}, "zero"),
        ("regmean", {"alpha": 1.5}, "alpha"), ("regmean", {"ridge": -1}, "ridge"), ("fisher", {"floor": -1}, "floor"),
        ("fisher", {"missing": "no"}, "missing"), ("regmean", {"weight": [1, -1]}, "weight"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_an_error_before_anything_is_read(
    method: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        METHODS[method].check((3, 3), 2, parameters, has_base=False)
