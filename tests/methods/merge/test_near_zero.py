"""Where methods stop telling a length, an angle or a sum from zero: what mergekit 0.1.5 gives on either side of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ...helpers.merge_arrays import merge


def held(made: Any, gives: list[float]) -> None:
    """Hold values against mergekit's, within what float32 makes of the largest."""
    np.testing.assert_allclose(made, gives, rtol=0, atol=1e-6 * np.abs(gives).max())


def arrays(*values: list[float]) -> list[Any]:
    return [np.array(one, "f4") for one in values]


@pytest.mark.parametrize(("method", "more"), [("ties", {}), ("breadcrumbs", {"gamma": 0.0})])
def test_what_is_kept_of_a_tiny_change_is_not_rescaled(method: str, more: dict[str, float]) -> None:
    """The magnitudes sum to 1.35e-7, those that are kept to 7.2e-8: below 1e-7 that is zero."""
    base, model = arrays([0.0] * 6, [2.5e-8, 2e-8, 2.4e-8, 2.1e-8, 2.2e-8, 2.3e-8])
    made = merge(method, [model], base, density=0.5, rescale=True, **more)
    held(made, [2.5e-8, 0, 2.4e-8, 0, 0, 2.3e-8])


def test_a_change_that_is_tiny_as_a_whole_is_not_rescaled() -> None:
    base, model = arrays([0.0] * 6, [3e-9, -1e-9, 2e-9, 5e-10, 4e-9, 1e-9])
    held(merge("ties", [model], base, density=0.5, rescale=True), [3e-9, 0, 2e-9, 0, 4e-9, 0])


def test_sce_weighs_tiny_changes_alike() -> None:
    """The mean squares sum to 2.9e-7: below 1e-6 each model counts as much as the others."""
    base, *models = arrays([0.0] * 4, [1e-3, 0, 0, 2e-4], [3e-4, 1e-4, 0, -1e-4])
    held(merge("sce", models, base), [6.5e-4, 1e-4, 0, 2e-4])


@pytest.mark.parametrize(
    ("first", "second", "gives"),
    [
        ([3e-9, 4e-9], [1.0, 0.0], [0.38268346, 3.6955181e-09]),
        ([3e-9, 4e-9], [2.0, 0.0], [0.76536691, 3.6955181e-09]),
    ],
)
def test_slerp_takes_the_direction_of_a_tiny_vector_for_none(
    first: list[float], second: list[float], gives: list[float]
) -> None:
    made = merge("slerp", arrays(first, second), t=0.25)
    np.testing.assert_allclose(made, gives, rtol=1e-6)


@pytest.mark.parametrize("parameters", [{}, {"nuslerp_flatten": False}])
def test_nuslerp_goes_straight_between_vectors_that_are_all_but_opposite(parameters: dict[str, bool]) -> None:
    models = [one.reshape(1, -1) for one in arrays([1.0, 0, 0, 0], [-2.0, 2e-4, 0, 0])]
    held(merge("nuslerp", models, weight=[1.0, 3.0], **parameters), [[-1.25, 1.5e-4, 0, 0]])


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(
    ("factors", "gives"), [((1.0, 3.0, -2.0, 5.0), [0.275, 0.55, 0.825, 1.1]), ((1.0, 1.3, -0.7), [0.1, 0.2, 0.3, 0.4])]
)
def test_karcher_has_no_way_to_a_vector_opposite_to_the_mean(
    factors: tuple[float, ...], gives: list[float], steps: int
) -> None:
    """In other vectors mergekit turns aside, where float32 makes more or less of a sine of zero."""
    (vector,) = arrays([0.1, 0.2, 0.3, 0.4])
    held(merge("karcher", [vector * np.float32(one) for one in factors], max_iter=steps), gives)


def test_model_stock_takes_short_changes_for_shorter_than_they_are() -> None:
    """The product of their lengths is 5e-8, and counts as 1e-6: a cosine of 0.8 as 0.04."""
    base, *models = arrays([0.0] * 3, [1e-4, 2e-4, 0], [2e-4, 1e-4, 0])
    held(merge("model_stock", models, base), [1.1538460e-05, 1.1538460e-05, 0])
    row = [one.reshape(1, -1) for one in models]
    held(merge("model_stock", row, base.reshape(1, -1), filter_wise=True), [[1.1538460e-05, 1.1538460e-05, 0]])


def test_model_stock_stays_at_the_base_where_two_changes_all_but_cancel() -> None:
    base, *models = arrays([0.0, 0], [1.0, 0], [-1.0, 1e-3])
    assert merge("model_stock", models, base).tolist() == [0, 0]


def test_nearswap_takes_differences_below_a_millionth_for_one() -> None:
    base, model = arrays([0.0, 0, 0], [1e-7, 3e-7, -2e-6])
    np.testing.assert_allclose(merge("nearswap", [model], base, t=1e-7), [1e-8, 3e-8, -1e-7], rtol=1e-6)


def test_ramplus_counts_what_a_model_has_alone_as_epsilon_at_least() -> None:
    """Each shares one element and has one alone, which counts as 2: a ratio of a half."""
    base, *models = arrays([0.0] * 4, [0.1, 0.2, 3, 4], [0.3, 5, 0.4, 4])
    held(merge("ramplus_tl", models, base, epsilon=2.0, r=1.0, alpha=10.0), [0, 7.5, 4.5, 4])
