"""Of experts that differ in their number alone one is checked; keys with other numbers stay apart."""

from __future__ import annotations

import pytest

from ckptsurgeon.api.model_folder.layers.experts import of_first_expert, without_like_experts
from ckptsurgeon.api.model_folder.weights.required_parts import pattern_of
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("layers.3.mlp.experts.12.up_proj.weight", "layers.3.mlp.experts.0.up_proj.weight"),
        ("layers.3.mlp.local_experts.7.w1.weight", "layers.3.mlp.local_experts.0.w1.weight"),
        ("a.experts.1.b.experts.2.w", "a.experts.0.b.experts.0.w"),
        ("a.experts.up_proj.weight", "a.experts.up_proj.weight"),
        ("a.experts.5", "a.experts.5"),
        ("a.shared_experts.up_proj.weight", "a.shared_experts.up_proj.weight"),
        ("layers.3.norm.weight", "layers.3.norm.weight"),
    ],
)
def test_the_number_of_an_expert_becomes_0(key: str, first: str) -> None:
    assert of_first_expert(key) == first


def test_experts_of_another_shape_or_layer_are_not_alike() -> None:
    tensors = [
        DescribedTensor(f"layers.{layer}.mlp.experts.{number}.w.weight", "float32", (2 + (number == 2), 2))
        for layer in range(2)
        for number in range(4)
    ]
    kept = [one.key for one in without_like_experts(tensors)]
    assert kept == [f"layers.{layer}.mlp.experts.{number}.w.weight" for layer in range(2) for number in (0, 2)]


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("layers.0.bias", "layers.#.bias"),
        ("0.weight", "#.weight"),
        ("params.3", "params.#"),
        ("7", "#"),
        ("a.1.2.b2.c", "a.#.#.b2.c"),
        ("conv1d.0x.weight", "conv1d.0x.weight"),
    ],
)
def test_whole_numbers_between_dots_are_left_open_in_a_pattern(key: str, pattern: str) -> None:
    assert pattern_of(key) == pattern
