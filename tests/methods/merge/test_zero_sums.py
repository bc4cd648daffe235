"""Weights that sum to zero: what each method makes of them, and where it refuses them before anything is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptsurgeon as cs

from ...helpers.merge_arrays import METHODS, merge

MEANS = ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs", "multislerp")
"""Methods that divide by the sum of the weights: there has to be one."""
ELECTED = ("ties", "dare_ties", "della", "breadcrumbs_ties")
"""Methods that divide each element by the weights of those models that are merged there, as mergekit does."""
EQUAL = ("nuslerp",)
"""Methods for which weights that sum to zero are equal ones, as for mergekit."""

BASE = np.array([[0.0, 1.0, 2.0, 3.0]], "f4")
FIRST, SECOND = np.array([[1.0, 1.0, -1.0, 0.5]], "f4"), np.array([[0.5, -1.0, 1.0, 0.25]], "f4")

ALL_ZERO, OPPOSITE = [0.0, 0.0], [1.0, -1.0]

TABLE = [
    *((name, weight, True, "sum to zero") for name in MEANS for weight in (ALL_ZERO, OPPOSITE)),
    *((name, ALL_ZERO, True, "are all zero") for name in ELECTED),
    *((name, OPPOSITE, True, "by element") for name in ELECTED),
    *((name, ALL_ZERO, False, "nothing") for name in (*MEANS, *ELECTED)),
    *((name, OPPOSITE, False, "by element" if name in ELECTED else "difference") for name in (*MEANS, *ELECTED)),
    *((name, weight, None, "equal") for name in EQUAL for weight in (ALL_ZERO, OPPOSITE)),
]  # fmt: skip


def switch(method: str) -> str:
    return next((one.name for one in METHODS[method].parameters if one.name.startswith("normalize")), "")


def asked(method: str, weight: list[float], normalize: bool | None) -> dict[str, Any]:
    return {"weight": weight, **({} if normalize is None else {switch(method): normalize})}


def test_every_method_that_has_weights_is_in_the_table() -> None:
    weighed = {name for name, one in METHODS.items() if any(each.name == "weight" for each in one.parameters)}
    # negative weights, and all zero, are errors: see test_by_statistics.py
    positive = {"fisher", "regmean", "regmean_plusplus"}
    assert weighed == {*MEANS, *ELECTED, *EQUAL, *positive, "aim"}  # aim divides by no weights
    assert weighed - {*EQUAL, *positive, "aim"} == {name for name in METHODS if switch(name)}


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize(("method", "weight", "normalize", "comes"), TABLE)
def test_weights_that_sum_to_zero(
    method: str, weight: list[float], normalize: bool | None, comes: str, density: float
) -> None:
    given = asked(method, weight, normalize)
    base = BASE if METHODS[method].base == "required" else None
    if any(one.name == "density" for one in METHODS[method].parameters):
        given["density"] = density
    elif density < 1:
        pytest.skip("it drops nothing")
    if comes in ("sum to zero", "are all zero"):
        with pytest.raises(cs.PlanError, match=comes) as error:  # by the parameters alone
            METHODS[method].check((1, 4), 2, given, has_base=base is not None)
        assert f"{switch(method)}=false" in error.value.hint
        return
    METHODS[method].check((1, 4), 2, given, has_base=base is not None)
    if density < 1:
        return
    found = merge(method, [FIRST, SECOND], base, **given)
    if comes == "nothing":
        assert np.array_equal(found, 0 * BASE if base is None else BASE)
    elif comes == "equal":
        assert np.array_equal(found, merge(method, [FIRST, SECOND], base, weight=[1.0, 1.0]))
    elif comes == "difference" and method != "multislerp":
        np.testing.assert_allclose(found, FIRST - SECOND + (0 if base is None else base), atol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("method", ELECTED)
def test_what_is_elected_is_divided_by_the_weights_of_the_elected(method: str) -> None:
    """Where both are of the majority, 1 - 1 would be divided by: there the sum stays as it is, as mergekit has it."""
    found = merge(method, [FIRST, SECOND], BASE, weight=OPPOSITE, normalize=True)
    # What they add: 1, 0, -3, -2.5 and, weighed with -1, -0.5, 2, 1, 2.75.
    np.testing.assert_allclose(found - BASE, [[1.0, -2.0, -3.0, -2.75]])


@pytest.mark.parametrize("weight", [[1.0, -0.9999999], [-0.9999999, 1.0], [3.0, -1.0, -1.9999998]])
@pytest.mark.parametrize("method", MEANS)
def test_a_model_merged_with_itself_comes_back_however_near_its_weights_cancel(
    method: str, weight: list[float]
) -> None:
    values = np.random.default_rng(0).standard_normal((40, 30), "f4")
    base = np.ones_like(values) if METHODS[method].base == "required" else None
    found = merge(method, [values] * len(weight), base, weight=weight, **{switch(method): True})
    np.testing.assert_allclose(found, values, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("size", [1e-320, 1e-46, 5e-9, 1.0, 1e46, 1.7e308])
@pytest.mark.parametrize("method", [*MEANS, *ELECTED])
def test_only_the_proportions_of_weights_count_where_they_are_normalised(method: str, size: float) -> None:
    base = BASE if METHODS[method].base == "required" else None
    found = merge(method, [FIRST, SECOND], base, weight=[size, size], **{switch(method): True})
    wanted = merge(method, [FIRST, SECOND], base, weight=[1.0, 1.0], **{switch(method): True})
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1e-46, 1.0, 1e46])
def test_weights_sum_to_zero_beside_their_own_sizes(size: float) -> None:
    with pytest.raises(cs.PlanError, match="sum to zero"):
        METHODS["linear"].check((1, 4), 2, {"weight": [size, -size * (1 - 1e-9)]}, has_base=False)


@pytest.mark.parametrize("given", [{"weight": {"**": [1, 1], "b": [1, -1]}}, {"weight": {"**": [1, 1], "b": [0, 0]}}])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "breadcrumbs"])
def test_weights_of_some_tensors_are_refused_by_name_when_it_is_planned(method: str, given: dict[str, Any]) -> None:
    for name in ("base", "one", "two"):
        save_file(dict.fromkeys("abc", FIRST), name)
    base = {"base": "base"} if METHODS[method].base == "required" else {}
    with pytest.raises(cs.PlanError, match=r"^b: the weights sum to zero \((1, -1|0, 0)\)"):
        cs.merge(["one", "two"], method=method, **base, **given, normalize=True)


def test_a_tensor_that_only_a_model_without_weight_has_is_refused_by_name() -> None:
    save_file({"a": FIRST}, "one")
    save_file({"a": FIRST, "b": SECOND}, "two")
    with pytest.raises(cs.PlanError, match=r"^b: the weights sum to zero \(0\)"):
        cs.merge(["one", "two"], method="linear", weights=[1, 0], on_missing="any")
    cs.apply(cs.merge(["one", "two"], method="linear", weights=[1, 0.5], on_missing="any"), "out.safetensors")
    assert np.array_equal(load_file("out.safetensors")["b"], SECOND)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs_ties"])
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_weights_that_cancel_but_for_rounding_are_not_divided_by(method: str, compute: str) -> None:
    """0.1 + 0.2 - 0.3 is 5e-17 in double precision: what is divided by it is 1e16 times too large."""
    deltas = [np.full((1, 4), 1.0), np.full((1, 4), 1.0), np.full((1, 4), -1.0)]
    for name, one in zip("abc", deltas, strict=True):
        save_file({"w": (0 * one + one).astype(compute)}, f"{name}.safetensors")
    save_file({"w": np.zeros((1, 4), compute)}, "base.safetensors")
    plan = cs.merge(
        ["a.safetensors", "b.safetensors", "c.safetensors"], base="base.safetensors", method=method, compute=compute,
        weight=[0.1, 0.2, -0.3], normalize=True, **({"gamma": 0.0} if "breadcrumbs" in method else {}),
    )  # fmt: skip
    cs.apply(plan, "out.safetensors")
    np.testing.assert_allclose(load_file("out.safetensors")["w"], 0.6, rtol=1e-6)
