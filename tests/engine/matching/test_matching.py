"""Weight matching of small multilayer perceptrons: held against the paper's sum over all permutations."""

from __future__ import annotations

import sys
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.engine.matching.experts import match_expert
from ckptsurgeon.engine.matching.matching import match
from ckptsurgeon.planning.aligning.groups import OWN, Group, Part

SIZES = (3, 4, 4, 2)
GROUPS = [
    Group(f"hidden{at}", OWN, 4, (Part((f"{at}.weight",), 0), Part((f"{at}.bias",), 0), Part((f"{at + 1}.weight",), 1)))
    for at in (0, 1)
]
MEMORY = 1 << 26


def perceptron(seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    state = {}
    for at, (inputs, outputs) in enumerate(pairwise(SIZES)):
        state[f"{at}.weight"] = torch.randn(outputs, inputs, generator=drawn)
        state[f"{at}.bias"] = torch.randn(outputs, generator=drawn)
    return state


def permuted(state: dict[str, torch.Tensor], first: list[int], second: list[int]) -> dict[str, torch.Tensor]:
    return {
        "0.weight": state["0.weight"][first], "0.bias": state["0.bias"][first],
        "1.weight": state["1.weight"][second][:, first], "1.bias": state["1.bias"][second],
        "2.weight": state["2.weight"][:, second], "2.bias": state["2.bias"],
    }  # fmt: skip


def similarity(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The paper's sum: of the inner products of all weights and biases."""
    return sum(float((one[key].double() * other[key].double()).sum()) for key in one)


def run(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], memory: int = MEMORY) -> list[list[int]]:
    with cs.open_checkpoint(one) as first, cs.open_checkpoint(other) as second:
        return [list(each.order) for each in match(first, second, GROUPS, memory)]


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_permutation_is_found_back(seed: int) -> None:
    one = perceptron(seed)
    drawn = np.random.default_rng(seed)
    other = permuted(one, drawn.permutation(4).tolist(), drawn.permutation(4).tolist())
    found = permuted(other, *run(one, other))
    assert all(torch.equal(found[key], one[key]) for key in one)


@pytest.mark.costly
@pytest.mark.parametrize("seed", range(12))
def test_no_permutation_of_one_layer_gains_and_few_of_both(seed: int) -> None:
    one, other = perceptron(seed), perceptron(seed + 100)
    orders = run(one, other)
    found = similarity(one, permuted(other, *orders))
    every = [list(each) for each in permutations(range(4))]
    assert found >= max(similarity(one, permuted(other, each, orders[1])) for each in every) - 1e-9
    assert found >= max(similarity(one, permuted(other, orders[0], each)) for each in every) - 1e-9
    best = max(similarity(one, permuted(other, *pair)) for pair in product(every, every))
    identity = similarity(one, other)
    assert found - identity >= 0.6 * (best - identity)  # it is no more than a local optimum


def test_layers_that_are_alike_stay_although_what_anchors_them_is_not() -> None:
    one = perceptron(0)
    other = {**one, "0.weight": perceptron(5)["0.weight"] * 0.5, "0.bias": torch.zeros(4)}
    drawn = torch.Generator().manual_seed(9)
    for _ in range(20):  # the first layer leads the first visit elsewhere
        other["0.weight"] = torch.randn(4, 3, generator=drawn) * 0.5
        orders = run(one, other)
        assert similarity(one, permuted(other, *orders)) >= similarity(one, other) - 1e-9


def test_small_bands_give_the_same_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = perceptron(1), perceptron(2)
    orders = run(one, other)
    monkeypatch.setattr("ckptsurgeon.engine.matching.similarity.LEAST", 1)
    assert orders == run(one, other, memory=128 + 96)


def test_models_that_are_aligned_do_not_move() -> None:
    one = perceptron(3)
    near = {key: value + 0.01 * torch.randn_like(value) for key, value in one.items()}
    assert run(one, near) == [[0, 1, 2, 3]] * 2
    assert run(one, one) == [[0, 1, 2, 3]] * 2


def test_units_that_are_equal_stay_where_they_are() -> None:
    one = {key: torch.ones_like(value) for key, value in perceptron(0).items()}
    assert run(one, one) == [[0, 1, 2, 3]] * 2


def test_units_that_are_equal_up_to_rounding_stay_where_they_are() -> None:
    one = perceptron(0)
    for key in ("0.weight", "0.bias"):
        one[key][1] = one[key][0]
    one["1.weight"][:, 1] = one["1.weight"][:, 0]
    for seed in range(20):
        drawn = torch.Generator().manual_seed(seed)
        first, near = (
            {key: value * (1 + 1e-6 * torch.randn(value.shape, generator=drawn)) for key, value in one.items()}
            for _ in range(2)
        )
        assert run(first, near) == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_errors_that_name_the_tensor(value: float) -> None:
    one, other = perceptron(0), perceptron(1)
    other["1.bias"][2] = value
    with pytest.raises(cs.PlanError, match=r"1\.bias of .* has NaN or infinite values"):
        run(one, other)


def test_weights_whose_products_overflow_are_an_error() -> None:
    one = {key: value * 1e25 for key, value in perceptron(0).items()}
    with pytest.raises(cs.PlanError, match="inner products of the weights are too large"):
        run(one, one)


def test_without_scipy_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setattr("ckptsurgeon.engine.matching.similarity.read_part", None)
    with pytest.raises(cs.ConfigError, match="the package scipy is needed"):
        run(perceptron(0), perceptron(1))


def test_too_little_memory_for_the_similarities_is_an_error_before_anything_is_read() -> None:
    one = perceptron(0)
    with pytest.raises(
        cs.PlanError, match=r"similarities of 4 units .groups of hidden0., and .* take 6\.3 MB"
    ) as error:
        run(one, one, memory=127)
    assert error.value.hint == f"Allow more memory: --memory {128 + 12 * 8 * 65536}B."
    assert run(one, one, memory=128 + 12 * 8 * 65536) == [[0, 1, 2, 3]] * 2


def test_too_little_memory_for_the_similarities_of_experts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"up": torch.randn(2, 4, 3), "down": torch.randn(2, 3, 4)}
    parts = [Part(("up",), 1, 0, 1), Part(("down",), 2, 0, 1)]
    with cs.open_checkpoint(tensors) as source:
        assert len(match_expert(source, parts, 4, 0, 1, 128).order) == 4
        monkeypatch.setattr("ckptsurgeon.engine.matching.experts.np.zeros", None)  # before any is made
        with pytest.raises(cs.PlanError, match=r"similarities of 4 channels of each expert \(up\) take 128 B") as error:
            match_expert(source, parts, 4, 0, 1, 127)
    assert error.value.hint == "Leave --align-experts out."


def test_the_cosine_before_and_after_is_over_all_tensors_of_a_group(tmp_path: Path) -> None:
    one = perceptron(0)
    other = permuted(one, [1, 0, 2, 3], [0, 1, 2, 3])
    with cs.open_checkpoint(one) as first, cs.open_checkpoint(other) as second:
        results = match(first, second, GROUPS, MEMORY)
    keys = ("0.weight", "0.bias", "1.weight")
    size = sum(float(one[key].double().square().sum()) for key in keys)
    before = sum(float((one[key].double() * other[key].double()).sum()) for key in keys) / size
    assert results[0].moved == 2
    assert results[0].before == pytest.approx(before, rel=1e-9)
    assert results[0].after == pytest.approx(1.0, rel=1e-9)
    assert results[1].moved == 0
