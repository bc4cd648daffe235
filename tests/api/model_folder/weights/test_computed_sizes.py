"""Sizes that several fields give, heads that divide a width, and modules that a field turns on, against the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

STEM = "model.layers.{}.{}.weight"
DEEPSEEK: Mapping[str, Any] = {
    "model_type": "deepseek_v3", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2, "v_head_dim": 4, "kv_lora_rank": 6, "q_lora_rank": 8, "n_routed_experts": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 10, "intermediate_size": 12, "first_k_dense_replace": 1,
}  # fmt: skip
ATTENTION = {
    "kv_a_proj_with_mqa": (8, 16),
    "kv_b_proj": (16, 6),
    "q_a_proj": (8, 16),
    "q_b_proj": (12, 8),
    "o_proj": (16, 8),
}
EXPERT = {"gate_proj": (10, 16), "up_proj": (10, 16), "down_proj": (16, 10)}
DENSE = {"gate_proj": (12, 16), "up_proj": (12, 16), "down_proj": (16, 12)}


def deepseek() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {STEM.format(0, f"mlp.{name}"): shape for name, shape in DENSE.items()}
    shapes |= {STEM.format(n, f"self_attn.{name}"): shape for n in (0, 1) for name, shape in ATTENTION.items()}
    for module in ("experts.0", "experts.1", "shared_experts"):
        shapes |= {STEM.format(1, f"mlp.{module}.{name}"): shape for name, shape in EXPERT.items()}
    return shapes | {"model.layers.1.mlp.gate.weight": (2, 16), "model.embed_tokens.weight": (32, 16)}


T5 = {f"encoder.block.0.layer.{name}.weight": shape for name, shape in
      {"0.SelfAttention.q": (8, 8), "1.DenseReluDense.wi": (12, 8), "1.DenseReluDense.wo": (8, 12)}.items()}  # fmt: skip
OF_T5 = {"model_type": "t5", "d_model": 8, "num_heads": 2, "d_kv": 4, "d_ff": 12, "feed_forward_proj": "relu"}
SOUND = {f"wav2vec2.feature_extractor.conv_layers.{n}.conv.weight": (8, 8 if n else 1, 4 - n) for n in (0, 1)}
OF_SOUND = {
    "model_type": "wav2vec2", "conv_dim": [8, 8], "conv_kernel": [4, 3], "hidden_size": 8, "num_attention_heads": 2,
    "feat_extract_norm": "group",
}  # fmt: skip
GPT2 = {"transformer.h.0.attn.c_attn.weight": (8, 24)}
OF_GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2}
GPT_OSS = {"model.layers.0.mlp.experts.gate_up_proj": (2, 8, 24)}
OF_GPT_OSS = {"model_type": "gpt_oss", "hidden_size": 8}


def notes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[str]:
    Path("m").mkdir(exist_ok=True)
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps(config))
    return list(cs.inspect("m").notes)


STATES = {f"backbone.layers.0.mixer.{name}": shape for name, shape in
          {"A_log": (16, 4), "conv1d.weight": (16, 1, 3), "dt_proj.weight": (16, 2)}.items()}  # fmt: skip
OF_STATES = {
    "model_type": "mamba", "hidden_size": 8, "expand": 2, "state_size": 4, "conv_kernel": 3, "time_step_rank": 2,
}  # fmt: skip
SOUND_ONES = [
    (deepseek(), DEEPSEEK), (T5, OF_T5), (SOUND, OF_SOUND), (GPT2, OF_GPT2), (GPT_OSS, OF_GPT_OSS), (STATES, OF_STATES),
]  # fmt: skip
NAMES = ["deepseek", "t5", "wav2vec2", "gpt2", "gpt_oss", "mamba"]


@pytest.mark.parametrize(("shapes", "config"), SOUND_ONES, ids=NAMES)
def test_sound_ones_have_no_note(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> None:
    assert not [note for note in notes(shapes, config) if "config.json says" in note or "is (" in note]


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        (5, {"state_size": 8}, "config.json says 8 (state_size), but backbone.layers.0.mixer.A_log has 4 columns"),
        (5, {"expand": 4}, "config.json says 32 (hidden_size, expand), but backbone.layers.0.mixer.A_log is (16, 4)"),
        (5, {"conv_kernel": 4}, "config.json says 4 (conv_kernel), but backbone.layers.0.mixer.conv1d.weight is (16, 1, 3)"),
        (5, {"time_step_rank": 4}, "config.json says 4 (time_step_rank), but backbone.layers.0.mixer.dt_proj.weight"),
        (0, {"kv_lora_rank": 4}, "config.json says 4 (kv_lora_rank), but model.layers."),
        (0, {"n_shared_experts": 2}, "config.json says 20 (n_shared_experts, moe_intermediate_size), but "),
        (0, {"qk_rope_head_dim": 4, "qk_nope_head_dim": 2}, "config.json says 12 (num_attention_heads, qk_nope_head_dim, v_head_dim)"),
        (0, {"q_lora_rank": None}, "config.json says q_lora_rank: null, but there is model.layers."),
        (0, {"first_k_dense_replace": 0}, "config.json says that layer 0 has experts (first_k_dense_replace), but model.layers.0 has none"),
        (0, {"first_k_dense_replace": 2}, "config.json says that layer 1 has no experts (first_k_dense_replace), but model.layers.1 has some"),
        (1, {"d_kv": 6}, "config.json says 12 (num_heads, d_kv), but "),
        (1, {"feed_forward_proj": "gated-gelu"}, 'feed_forward_proj: "gated-gelu", but there is no DenseReluDense.wi_0'),
        (2, {"feat_extract_norm": "layer"}, 'feat_extract_norm: "layer", but there is no conv_layers.1.layer_norm'),
        (2, {"conv_kernel": [4, 2]}, "config.json says 2 (conv_kernel, entry 1), but "),
        (2, {"conv_dim": [8, 8, 8]}, "config.json has 3 sizes (conv_dim), but there are 2 convolutions"),
        (2, {"num_attention_heads": 3}, "3 heads (num_attention_heads), which do not divide 8 (hidden_size)"),
        (3, {"n_head": 3}, "config.json says 3 heads (n_head), which do not divide 8 (n_embd)"),
        (3, {"n_embd": 24, "n_head": 2}, "config.json says 24 (n_embd), but transformer.h.0.attn.c_attn.weight is (8, 24)"),
        (4, {"hidden_size": 24}, "config.json says 24 (hidden_size), but model.layers.0.mlp.experts.gate_up_proj is (2, 8, 24)"),
    ],
)  # fmt: skip
def test_a_field_that_the_weights_contradict_is_noted(model: int, changed: dict[str, Any], said: str) -> None:
    shapes, config = SOUND_ONES[model]
    assert len([note for note in notes(shapes, {**config, **changed}) if said in note]) == 1


def test_an_expert_with_swapped_projections_is_noted() -> None:
    shapes = {
        f"model.layers.0.block_sparse_moe.experts.{n}.w{i}.weight": (4, 8) if i == 2 else (8, 4)
        for n in range(4)
        for i in (1, 2, 3)
    }
    odd = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    config = {"model_type": "mixtral", "num_local_experts": 4}
    assert not [note for note in notes(shapes, config) if "in the other experts" in note]
    said = [note for note in notes({**shapes, odd: (4, 8)}, config) if "in the other experts" in note]
    assert said == [f"{odd} is (4, 8), but in the other experts it is (8, 4): transformers cannot load this model"]
