"""Consensus merging and TALL masks, from their definition."""

from __future__ import annotations

import numpy as np
import pytest

from ckptsurgeon.errors import ConfigError

from ...helpers.merge_arrays import merge

BASE = np.ones(5)
CHANGES = [np.array([4.0, 3, 0, 1, -2]), np.array([0.0, 2, 0, -1, -3]), np.array([0.0, 2, 0, 0, 5])]
"""What matters to one model, to all, to none (no change), to none that is a sum of zero, and changes that cancel."""


@pytest.mark.parametrize(
    ("k", "gives"),
    [(1, [4, 7, 0, 0, 0]), (0, [4, 7, 0, 0, 0]), (3, [0, 0, 0, 0, 0]), (4, [0, 0, 0, 0, 0]), (2, [0, 7, 0, 0, 0])],
)
def test_an_element_stays_that_matters_to_enough_models(k: int, gives: list[float]) -> None:
    """The second element: 3 > 0.5 * 4, but 2 is not above 0.5 * 5."""
    models = [BASE + one for one in CHANGES]
    given = {"tall_lambda": [0.5, 0.39, 0.5], "k": k}
    np.testing.assert_allclose(merge("consensus", models, BASE, **given), BASE + gives)
    np.testing.assert_allclose(merge("consensus", models, BASE, lambda_=0.5, **given), BASE + np.array(gives) / 2)


def test_none_left_out_is_task_arithmetic() -> None:
    models = [BASE + one for one in CHANGES]
    np.testing.assert_allclose(merge("consensus", models, BASE, k=0), merge("task_arithmetic", models, BASE))


@pytest.mark.parametrize("task", [1, 2])
def test_models_that_changed_other_elements_are_found_again(task: int) -> None:
    changes = [np.array([1.0, 0, 2, 0]), np.array([0.0, 3, 0, 0])]
    models = [np.ones(4) + one for one in changes]
    np.testing.assert_array_equal(merge("tall_mask", models, np.ones(4), task=task), models[task - 1])


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task is 3, but there are 2 models\."):
        merge("tall_mask", [BASE, BASE], BASE, task=3)
