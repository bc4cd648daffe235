"""What a method says of itself, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

from ckptsurgeon.errors import ConfigError, PlanError
from ckptsurgeon.methods.merge._method import Between, Method, PerModel, merge_method
from ckptsurgeon.methods.merge._registry import load_plugin, merge_methods
from fixtures.fusionbench_cases import CASES as FUSIONBENCH
from fixtures.mergekit_cases import CASES as MERGEKIT

from ...helpers.merge_arrays import METHODS, merge

NAMES = [
    "aim", "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "consensus", "dare_linear", "dare_ties", "della", "della_linear", "fisher", "iso_c",
    "iso_cts", "karcher", "knots_dare_ties", "knots_ties",
    "linear", "median", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "pcb", "ram", "ramplus_tl", "regmean", "regmean_plusplus", "sce",
    "slerp", "tall_mask", "task_arithmetic", "ties", "trimmed_mean", "tsv_m",
    "wudi",
]  # fmt: skip

BOUNDS = {
    "density": (0, 1), "gamma": (0, 1), "epsilon": (0, None), "select_topk": (0, 1), "trim": (0, 0.5), "alpha": (0, None),
    "r": (0, None), "floor": (0, None), "common_space": (0, 1), "ridge": (0, None),
    "k": (0, None), "tall_lambda": (0, None), "task": (1, None), "ratio": (0, 1), "eps": (0, None), "tol": (0, None), "omega": (0, 1), "max_iter": (0, None),
}  # fmt: skip
"""Parameters that are bounded wherever they are."""


def some(*shape: int, seed: int = 0) -> Any:
    return np.random.RandomState(seed).standard_normal(shape).astype("f4")


def test_the_methods_are_these() -> None:
    assert sorted(METHODS) == NAMES


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.name)
def test_every_method_says_what_it_does_where_it_is_from_and_what_it_takes(method: Method) -> None:
    assert method.summary.endswith(".")
    assert method.summary.startswith("Return the ") or method.name == "ramplus_tl"
    assert method.paper.startswith("https://")
    for one in method.parameters:
        assert one.kind in ("number", "whole number", "true or false", "text")
        if one.name in BOUNDS:
            low, high = BOUNDS[one.name]
            assert one.bounds.low == low
            assert one.bounds.high >= (high or 1)
            assert high is None or one.bounds.high == high
        if one.default is not None:
            assert one.checked(one.default) == one.default


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.name)
def test_every_method_says_with_what_the_tests_compare_it(method: Method) -> None:
    tools = {
        "mergekit 0.1.5": {case.method for case in MERGEKIT.values()},
        "FusionBench 0.2.33": {*(case.method for case in FUSIONBENCH.values()), "regmean_plusplus"},
        "NumPy": {"median", "trimmed_mean"},
        "the authors' formulas": {"pcb"},
        "the paper's formula": {"aim", "fisher", "knots_dare_ties", "regmean"},
    }
    assert [tool for tool, compared in tools.items() if method.name in compared] == [
        method.compared.partition(":")[0].partition(",")[0]
    ]


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.name)
def test_values_out_of_bounds_are_refused(method: Method) -> None:
    needed = {one.name: 1.0 for one in method.parameters if one.default is None}
    models = [some(3, 4, seed=seed) for seed in range(max(1, method.models[0]))]
    base = some(3, 4, seed=9) if method.base == "required" else None
    for one in method.parameters:
        edges = [edge for edge in (one.bounds.low - 0.5, one.bounds.high + 0.5) if math.isfinite(edge)]
        for wrong in ("x", math.nan, *edges):
            with pytest.raises(ConfigError, match=f"{one.name} is"):
                merge(method.name, models, base, **needed | {one.name: wrong})


def test_a_number_is_that_of_every_model_and_a_list_has_one_for_each() -> None:
    a, b = some(3, 4), some(3, 4, seed=1)
    assert np.array_equal(merge("linear", [a, b], weight=1), merge("linear", [a, b], weight=[1, 1]))
    with pytest.raises(ConfigError, match=r"weight has 3 values for 2 models\."):
        merge("linear", [a, b], weight=[1, 1, 1])


def test_a_parameter_that_is_needed_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"linear needs the parameter weight\. Give weight, a number for each model\."
    ):
        merge("linear", [some(2, 2)] * 2)


def test_a_parameter_that_a_method_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"slerp has no parameter density\. It has t\."):
        merge("slerp", [some(2, 2)] * 2, t=0.5, density=0.3)


def test_lambda_goes_by_its_name_and_by_its_argument() -> None:
    base, a = some(3, 4), some(3, 4, seed=1)
    one, other = (merge("task_arithmetic", [a], base, **{name: 0.5}) for name in ("lambda", "lambda_"))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, merge("task_arithmetic", [a], base))


def test_bounds_of_a_parameter_are_said_as_they_are() -> None:
    @merge_method("x", paper="")
    def method(tensors: Any, *, most: Annotated[float, Between(high=1)] = 0.5) -> Any:
        """Return nothing."""

    with pytest.raises(ConfigError, match=r"most is 2; it must be 1 or less"):
        method.parameters[0].checked(2)
    with pytest.raises(ConfigError, match=r"most is inf, not a finite number"):
        method.parameters[0].checked(math.inf)


def test_epsilon_that_leads_beyond_certainty_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0.8 to 1; all of them must be above 0"):
        merge("della", [some(3, 4)], some(3, 4, seed=1), density=0.9, epsilon=0.1)


def test_directions_that_cancel_are_refused_by_name() -> None:
    a = some(2, 2)
    with pytest.raises(PlanError, match="the directions of the tensor weight in the models cancel"):
        merge("multislerp", [a, -a, 0 * a], weight=[1, 1, 1])


@pytest.mark.parametrize("trim", [0.4, 0.1])
def test_trimming_all_models_is_refused(trim: float) -> None:
    with pytest.raises(ConfigError, match=r"needs at least 3 models; given: 2\."):
        merge("trimmed_mean", [some(2, 2)] * 2, trim=trim)


def test_a_default_for_every_model_is_a_sequence_of_one() -> None:
    @merge_method("own", paper="https://example.org")
    def own(tensors: Any, *, weight: Annotated[PerModel, Between(0, 2)] = (0.5,)) -> Any:
        """Return the first."""
        return lambda at: at.models[0] * weight[0] * len(weight)

    (parameter,) = own.parameters
    assert (parameter.default, parameter.each, parameter.bounds) == (0.5, True, Between(0, 2))


def test_a_plugin_brings_a_method(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from ckptsurgeon.methods.merge._method import merge_method\n\n"
        "@merge_method('first', paper='https://example.org')\n"
        "def first(tensors, *, times: int = 1):\n"
        "    '''Return the first model.'''\n"
        "    return lambda at: at.models[0] * times\n"
    )
    assert merge_methods(load_plugin(str(path)))["first"].summary == "Return the first model."
    assert "first" not in merge_methods()
