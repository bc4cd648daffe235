"""Queries, keys and values in one tensor (Phi-3) are resized as if they were three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.resizing.axes import Network
from ckptsurgeon.planning.resizing.fused import KIND, Heads, separated
from ckptsurgeon.tensors.info import TensorInfo

from .test_another_type import Saved
from .test_resize import outputs, source, transformers

__all__ = ["source"]

KEY = "model.layers.{}.self_attn.qkv_proj.weight"
WIDE = {"hidden_size": 128, "num_attention_heads": 8}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"num_key_value_heads": 4, "num_hidden_layers": 4}, {"layers": "identity"}),
        ({**WIDE, "num_key_value_heads": 4}, {"noise": 0.3}),
        ({**WIDE, "intermediate_size": 136, "num_hidden_layers": 4}, {"layers": "identity", "noise": 0.3}),
        ({"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6}, {}),
        ({"num_hidden_layers": 4}, {"layers": "identity"}),
    ],
)
def test_several_fields_change_together(fields: Any, more: Any, source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("phi3"), set=fields, **more)
    cs.apply(plan, tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    before, after = outputs(source("phi3"), "phi3"), outputs(tmp_path / "out", "phi3")
    assert (before - after).abs().max() / before.abs().max() < 1e-5
    assert not any("may change" in note for note in plan.notes)


def test_keys_and_values_are_pooled_and_queries_stay(source: Saved, tmp_path: Path) -> None:
    cs.apply(cs.resize(source("phi3"), set={"num_key_value_heads": 1}), tmp_path / "out")
    for layer in range(2):
        before, after = (
            load_file(folder / "model.safetensors")[KEY.format(layer)] for folder in (source("phi3"), tmp_path / "out")
        )
        assert torch.equal(after[:64], before[:64])
        for part in range(2):
            pair = before[64 + 32 * part :][:32].reshape(2, 16, 64)
            torch.testing.assert_close(after[64 + 16 * part :][:16], pair.mean(0))


def test_what_new_heads_and_numbers_get(source: Saved, tmp_path: Path) -> None:
    plan = cs.resize(source("phi3"), set={"hidden_size": 96, "num_attention_heads": 6})
    cs.apply(plan, tmp_path / "out")
    before, after = (
        load_file(folder / "model.safetensors")[KEY.format(1)] for folder in (source("phi3"), tmp_path / "out")
    )
    new = after[:96].reshape(2, 48, 96)  # two heads of keys, which two heads of queries shared, and now three do
    assert torch.equal(new[:, :32, :64], before[:64].reshape(2, 32, 64))
    assert not new[:, 32:, :64].any()
    assert torch.equal(after[96:, :64], before[64:])
    assert after[:, 64:].abs().min() > 0  # what reads new numbers is initialised


def test_another_type_with_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    """MiniMax has a qkv_proj, too, with the parts of each head side by side."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields = {"num_key_value_heads": 2, "head_dim": 4, "vocab_size": 30, "num_local_experts": 2, "block_size": 4}
    config = transformers.MiniMaxConfig(**sizes, **fields, layer_types=["linear_attention", "full_attention"])
    transformers.MiniMaxForCausalLM(config).save_pretrained(tmp_path / "minimax")
    with pytest.raises(cs.CheckpointError):
        cs.resize(tmp_path / "minimax", set={"num_attention_heads": 2}, keep={"num_attention_heads": "0,2"})


def test_rows_that_are_not_those_of_the_heads_are_an_error() -> None:
    network = Network({"a.qkv_proj.weight": TensorInfo("float32", (30, 8))}, {"a.qkv_proj.weight": KIND}, {})
    with pytest.raises(cs.PlanError, match="has 30 rows, which are not those of 4 heads of queries, and 2 each"):
        separated(network, Heads(4, 2))
    shapes = [info.shape for info in separated(network, Heads(4, 3)).tensors.values()]
    assert shapes == [(12, 8), (9, 8), (9, 8)]
