"""RegMean, Fisher merging and AIM do what their papers say: formulas in double precision, and what they minimise.

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
    with pytest.raises(PlanError, match="cannot be inverted: .* of its 7 channels") as raised:
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


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-6), ("f8", 1e-12)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("omega", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_aim_is_the_papers_formula(
    shape: tuple[int, int], omega: float, turned: bool, dtype: str, bound: float
) -> None:
    """The change times 1 - (1 - omega) s, with s the magnitude of each input by that of the largest (2502.02421)."""
    models, (base,), weights = drawn(shape), drawn(shape, 5)[4:], [0.2, 0.3, 1.5]
    found = np.abs(inputs(shape[1], 1)[0]).mean(0)
    scale = 1 - (1 - omega) * found / found.max()
    wanted = base + 0.7 * scale * np.sum([w * (one - base) for w, one in zip(weights, models, strict=True)], 0)
    given = [(one.T if turned else one).astype(dtype) for one in (*models, base)]
    for limit in (1 << 20, shape[1]):
        made = merge(
            "aim", given[:-1], given[-1], _magnitudes=found, _turned=turned, limit=limit, omega=omega, weight=weights,
            **{"lambda": 0.7},
        )  # fmt: skip
        assert made.dtype == np.dtype(dtype)
        assert error(made.T if turned else made, wanted) <= bound


def test_aim_keeps_the_weights_of_the_largest_input() -> None:
    models, (base,) = drawn((4, 6), 2), drawn((4, 6), 3)[2:]
    found = np.array([0.5, 3.0, 0.0, 1.0, 2.0, 0.1])
    made = merge("aim", models, base, _magnitudes=found, omega=0.0)
    assert np.array_equal(made[:, 1], base[:, 1])
    plain = merge("task_arithmetic", models, base)
    assert error(made[:, 2], plain[:, 2]) < 1e-12
    assert error(merge("aim", models, base, _magnitudes=np.zeros(6)), plain) < 1e-12
    with pytest.raises(PlanError, match="negative or not finite"):
        merge("aim", models, base, _magnitudes=found * np.nan)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("limit", [1 << 20, 21, 7])
def test_each_expert_of_a_stack_is_merged_by_its_own_inputs(limit: int, turned: bool) -> None:
    models, experts = drawn((4, 6, 7)), [grams(inputs(7, 3, rows=20 + expert)) for expert in range(4)]
    found = [np.stack([experts[expert][model] for expert in range(4)]) for model in range(3)]
    given = [one.swapaxes(1, 2).copy() if turned else one for one in models]
    made = merge("regmean", given, _grams=found, _turned=turned, limit=limit, ridge=0.0)
    for expert in range(4):
        wanted = by_formula([one[expert] for one in models], experts[expert], 0.9)
        assert error(made[expert].T if turned else made[expert], wanted) < 1e-10


def test_an_expert_that_no_input_used_gets_the_mean() -> None:
    models, own = drawn((2, 5, 7), 2), grams(inputs(7, 2))
    found = [np.stack([one, np.zeros((7, 7))]) for one in own]
    made = merge("regmean", models, _grams=found)
    assert error(made[1], np.mean(models, 0)[1]) < 1e-12
    assert error(made[0], np.mean(models, 0)[0]) > 1e-2


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
