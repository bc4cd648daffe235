"""Values that are no numbers, infinite, or the largest there are; what mergekit 0.1.5 gives stands as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.merge_arrays import METHODS, merge

BASE = np.arange(10, dtype="f4")
NAN = np.nan
HALF = np.array([NAN, 2, NAN, 3.5, NAN, 9, NAN, 7.25, NAN, 7.5], "f4")
"""A model that is no number in more places than a small density keeps."""


def merged(method: str, models: list[Array], base: Array | None = None, *, limit: int = 3, **given: Any) -> Array:
    with np.errstate(invalid="ignore"):
        return merge(method, models, base, limit=limit, **given)


@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize(
    ("method", "given", "gives"),
    [
        ("ties", {"density": 0.2}, [NAN, 1, NAN, 3, NAN, 5, NAN, 7, NAN, 9]),
        ("ties", {"density": 0.7}, [NAN, 1, NAN, 3, NAN, 9, NAN, 7, NAN, 7.5]),
        ("breadcrumbs", {"density": 0.2, "gamma": 0.1}, [NAN, 1, NAN, 3, NAN, 5, NAN, 7, NAN, 9]),
        ("breadcrumbs", {"density": 0.6, "gamma": 0.1}, [NAN, 1, NAN, 3, NAN, 9, NAN, 7, NAN, 7.5]),
        ("breadcrumbs_ties", {"density": 0.2, "gamma": 0.1}, [NAN, 1, NAN, 3, NAN, 5, NAN, 7, NAN, 9]),
    ],
)
def test_what_is_no_number_is_the_largest_and_stays(
    method: str, given: dict[str, float], gives: list[float], limit: int
) -> None:
    model = -HALF if method == "ties" else HALF  # NaN of either sign
    base = -BASE if method == "ties" else BASE
    made = merged(method, [model], base, limit=limit, **given)
    np.testing.assert_array_equal(-made if method == "ties" else made, gives)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_sce_of_what_is_no_number_has_no_weights(share: float) -> None:
    made = merged("sce", [HALF, BASE + np.float32(0.5)], BASE, select_topk=share)
    assert np.isnan(made).all()


BAD = np.array([NAN, 2, np.inf, 3.5], "f4")
"""A model that nothing is to be taken of."""
THINNED = [
    name for name, one in METHODS.items() if any(each.name == "density" and each.each for each in one.parameters)
]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("method", THINNED)
def test_a_model_of_density_zero_is_left_out(method: str, rescale: bool) -> None:
    """mergekit 0.1.5 leaves it out in ties and della; in dare and breadcrumbs it multiplies it by zero, which is NaN."""
    base, good = np.ones(4, "f4"), np.array([1.5, 2, 0.5, 3], "f4")
    made = merged(method, [BAD, good], base, weight=1.0, density=[0.0, 1.0], normalize=False, rescale=rescale)
    np.testing.assert_array_equal(made, [1.5, 2, 0.5, 3])


@pytest.mark.parametrize("method", ["median", "trimmed_mean"])
@pytest.mark.parametrize("count", [3, 4, 5, 11, 14, 25])
def test_a_value_that_all_have_stays_as_it_is(method: str, count: int) -> None:
    """The smallest that there is stands in masks of attention, for what is not to be seen."""
    limits = np.finfo("f4")
    model = np.array([limits.min, limits.max, limits.smallest_subnormal, 0.1, -np.inf], "f4")
    np.testing.assert_array_equal(merged(method, [model] * count), model)


@pytest.mark.parametrize("method", ["median", "trimmed_mean"])
def test_a_mean_of_the_largest_values_does_not_overflow(method: str) -> None:
    limit = np.finfo("f4").max
    models = [np.array([sign * limit, limit / 2, limit], "f4") for sign in (1, 1, -1, -1)]
    np.testing.assert_array_equal(merged(method, models), np.array([0, limit / 2, limit], "f4"))
