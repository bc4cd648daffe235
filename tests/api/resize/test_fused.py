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
from fixtures.resizing.networks import NETWORKS

from .test_another_type import Saved
from .test_resize import outputs, source, transformers

__all__ = ["source"]

KEY = "model.layers.{}.self_attn.qkv_proj.weight"
WIDE = {"hidden_size": 128, "num_attention_heads": 8}


@pytest.mark.long
@pytest.mark.costly
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
    for name, value in fields.items():  # those that change with the width, too
        assert any(f"{name} " in note and f" to {value}" in note for note in plan.notes), name


SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "one key for all heads": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    ),
    "a key for each head, in turn": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4},
    ),
    "a key for each head, biases": ("gpt_bigcode", {"multi_query": False}),
    "a key for each pair": ("falcon", {"num_attention_heads": 4, "num_kv_heads": 2, "bias": True}),
}


@pytest.mark.costly
@pytest.mark.parametrize("name", SHARING)
def test_heads_that_share_keys_become_wider(name: str, tmp_path: Path) -> None:
    kind, fields = SHARING[name]
    before, model = built(kind, fields, tmp_path / "in")
    width, heads = ("hidden_size", "num_attention_heads") if kind == "falcon" else ("n_embd", "n_head")
    change: dict[str, Any] = {width: 128, heads: 8, "tie_word_embeddings": False}
    plan = cs.resize(tmp_path / "in", set=change)
    cs.apply(plan, tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    after, loading = model.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        first, last = before.eval()(ids).logits, after.eval()(ids).logits
    assert (first - last).abs().max() / first.abs().max() < 1e-5


def built(kind: str, fields: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """Save a network with random weights, biases included; returns it, and its class."""
    name, others = NETWORKS[kind]
    config = transformers.CONFIG_MAPPING[kind](**{**others, **fields})
    model = getattr(transformers, name)
    torch.manual_seed(0)
    made = model(config)
    with torch.no_grad():
        for one in made.parameters():
            one.add_(torch.randn_like(one) * 0.1)
    made.save_pretrained(folder)
    return made, model


def test_one_shared_key_is_not_pooled(tmp_path: Path) -> None:
    built("falcon", SHARING["one key for all heads"][1], tmp_path / "in")
    with pytest.raises(cs.PlanError, match="num_kv_heads changes the shape of no tensor"):
        cs.resize(tmp_path / "in", set={"num_kv_heads": 1})


def test_new_channels_of_gate_and_values_are_initialised_beside_new_numbers(source: Saved, tmp_path: Path) -> None:
    fields = {"intermediate_size": 136, "hidden_size": 96, "num_attention_heads": 6}
    plan = cs.resize(source("phi3"), set=fields, new_channels="init")
    cs.apply(plan, tmp_path / "out")
    assert cs.verify(tmp_path / "out").ok
    key = "model.layers.1.mlp.gate_up_proj.weight"
    before, after = (load_file(folder / "model.safetensors")[key] for folder in (source("phi3"), tmp_path / "out"))
    for part in range(2):
        assert torch.equal(after[136 * part :][:96, :64], before[96 * part :][:96])
        assert 0.01 < float(after[136 * part + 96 :][:40].std()) < 0.03  # as the network initialises its weights
    before, after = outputs(source("phi3"), "phi3"), outputs(tmp_path / "out", "phi3")
    assert (before - after).abs().max() / before.abs().max() < 1e-5


@pytest.mark.long
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


@pytest.mark.long
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
    with pytest.raises(cs.PlanError, match="has 30 rows, which do not fit 4 heads of queries and 2 heads each"):
        separated(network, Heads(4, 2))
    shapes = [info.shape for info in separated(network, Heads(4, 3)).tensors.values()]
    assert shapes == [(12, 8), (9, 8), (9, 8)]
