"""Patterns that name the matrices to quantise: few, and of these alone, however many experts there are."""

from __future__ import annotations

import pytest

from ckptsurgeon.api.quantising.choosing import ChosenMatrices
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.renaming import KeyMatcher
from ckptsurgeon.tensors.info import TensorInfo

KEYS = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in range(4) for expert in range(8)]
OTHERS = ["model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("left", "number"),
    [
        ([], 1),
        (["model.layers.0."], 1),
        ([".experts.3."], 1),
        (["model.layers.0.", ".experts.3.", ".experts.5."], 1),
        (["model.layers.2.mlp.experts.3."], 2),  # layers 0, 1 and 3, and those that are left of layer 2
    ],
)
def test_a_list_of_numbers_stands_for_many_keys(left: list[str], number: int) -> None:
    keys = [key for key in KEYS if not any(one in key for one in left)]
    tensors = {key: TensorInfo("float32", (8, 8)) for key in (*KEYS, *OTHERS)}
    patterns = ChosenMatrices((*keys, OTHERS[1]), {}, (), ()).patterns(tensors)
    assert len(patterns) == number + 1
    hits = KeyMatcher([KeyPattern(one) for one in patterns]).hits(tensors)
    assert sorted(key for found in hits for key in found) == sorted((*keys, OTHERS[1]))


def test_numbers_without_order_are_named_each() -> None:
    keys = [KEYS[1], KEYS[8], KEYS[10], KEYS[19]]
    tensors = {key: TensorInfo("float32", (8, 8)) for key in KEYS}
    hits = KeyMatcher([KeyPattern(one) for one in ChosenMatrices(tuple(keys), {}, (), ()).patterns(tensors)]).hits(
        tensors
    )
    assert sorted(key for found in hits for key in found) == sorted(keys)
