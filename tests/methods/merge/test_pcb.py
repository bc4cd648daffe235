"""PCB-merging against its formulas, written here a second time in double precision; FusionBench does not have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.merge_arrays import merge


def unit(values: Array) -> Array:
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    made: Array = (values - low) / (high - low)
    return made


def by_definition(changes: Array, ratio: float) -> Array:
    """The merged change of vectors (models, elements), by the formulas of the authors' code."""
    models, size = changes.shape
    ordered, out = np.sort(np.abs(changes), axis=1), int(size * 1e-4)
    magnitudes = np.clip(np.abs(changes), ordered[:, [out]], ordered[:, [size - 1 - out]])
    scores = np.exp(models * unit(magnitudes) ** 2) * np.tanh(changes * changes.sum(axis=0))
    lowest = np.sort(scores, axis=1)[:, [min(int(size * (1 - ratio)), size - 1)]]
    weights = unit(np.maximum(scores, lowest))
    made: Array = (np.sign(changes) * magnitudes * weights).sum(0) / np.clip(weights.sum(0), 1e-12, None)
    return made


@pytest.mark.costly
@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-5), ("f8", 1e-12)])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("size", "models"), [(50, 3), (700, 2), (30_000, 4)])
def test_results_equal_the_formulas(size: int, models: int, ratio: float, dtype: Any, bound: float) -> None:
    draw = np.random.RandomState(size)
    changes = (draw.standard_normal((models, size)) + 0.5 * draw.standard_normal(size)).astype(dtype)
    made = merge("pcb", list(changes), np.zeros(size, dtype), limit=9000, ratio=ratio)
    wanted = by_definition(changes.astype("f8"), ratio)
    assert np.max(np.abs(made - wanted)) <= bound * np.max(np.abs(wanted))


def test_lambda_multiplies_the_change() -> None:
    draw = np.random.RandomState(0)
    base, models = np.ones((6, 5)), [1 + draw.standard_normal((6, 5)) for _ in range(2)]
    whole, half = (merge("pcb", models, base, lambda_=factor) for factor in (1.0, 0.5))
    np.testing.assert_allclose(half - 1, (whole - 1) / 2)
    assert np.count_nonzero(whole - 1) <= 2 * 3


def test_elements_in_which_models_disagree_are_left_out() -> None:
    changes = [np.array([1.0, 2, -3, 0.5]), np.array([1.0, -2.1, 0, 0.4])]
    made = merge("pcb", changes, np.zeros(4), ratio=0.5)
    assert made[1] <= 0  # the second model has the sign of the sum
    assert made[2] < 0


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 3)])
def test_small_tensors_and_models_without_change(shape: tuple[int, ...]) -> None:
    base = np.zeros(shape)
    np.testing.assert_array_equal(merge("pcb", [base, base], base), base)
    made = merge("pcb", [base + 1, base + 2], base, ratio=1.0)
    np.testing.assert_allclose(made, base + 1.5)  # magnitudes are equal, and so are scores
    made = merge("pcb", [base + 1, base], base, ratio=1.0)
    np.testing.assert_allclose(made, base + (0.5 if made.size == 1 else 1))
