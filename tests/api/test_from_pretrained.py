"""``fits`` of models of transformers: whether from_pretrained loads them, and what equal shapes do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.transformers_models import BERT, MIXTRAL, opened, saved, write_config

# Mixtures of experts: transformers saves one tensor for each expert, and stacks them when it loads them.

EXPERTS = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "num_experts": 2, "n_routed_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_num_experts": 2, "moe_k": 1, "n_group": 1, "topk_group": 1,
    "num_hidden_layers": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "use_mamba_kernels": False,
}  # fmt: skip
FAMILIES = {
    "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM", "olmoe": "OlmoeForCausalLM",
}  # fmt: skip


def strictly(architecture: str, folder: str) -> bool:
    model, _ = opened(architecture, folder)
    try:
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=True)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("kind", FAMILIES)
def test_experts_fit_as_transformers_saves_them(kind: str, ckpt: Callable[..., Any]) -> None:
    saved("moe", {**EXPERTS, "model_type": kind}, FAMILIES[kind])
    found = cs.fits("moe", "moe/config.json")
    assert (found.fits, found.strict, found.loader) == (True, False, FAMILIES[kind])
    assert not strictly(FAMILIES[kind], "moe")
    assert not opened(FAMILIES[kind], "moe")[1]
    shown = ckpt("fits", "moe", "moe/config.json")
    assert shown.code == 0
    first, second, *others = shown.out.splitlines()
    assert first == f"fits: from_pretrained of {FAMILIES[kind]} loads it"
    assert second.startswith("load_state_dict(strict=True) does not: ")
    assert len(others) == 2
    assert others[-1].split()[:2] == ["ckpt", "transplant"]
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits(found.command[-1], "moe").strict


def test_experts_that_are_not_all_there_do_not_fit() -> None:
    saved("moe", MIXTRAL, "MixtralForCausalLM")
    state = load_file("moe/model.safetensors")
    for change in (
        {key: one for key, one in state.items() if ".1.block_sparse_moe.gate" not in key},
        {**state, "more.weight": torch.ones(3)},
        {key: (torch.ones(24, 17) if key.endswith("experts.3.w1.weight") else one) for key, one in state.items()},
        {f"module.{key}": one for key, one in state.items()},
    ):
        save_file(change, "changed.safetensors")
        found = cs.fits("changed.safetensors", "moe/config.json")
        assert not found.fits, found
        assert found.verdict.startswith("does not fit: ")


def test_a_base_model_does_not_fit_a_class_with_a_head() -> None:
    saved("base", BERT, "BertModel")
    write_config("dst/config.json", BERT, "BertForSequenceClassification", num_labels=5)
    found = cs.fits("base", "dst/config.json")
    assert (found.fits, found.loader) == (False, "")


def test_every_tensor_is_listed_if_asked_for(ckpt: Callable[..., Any]) -> None:
    saved("moe", {**EXPERTS, "model_type": "mixtral"}, "MixtralForCausalLM")
    shown = ckpt("fits", "moe", "moe/config.json", "-v").out
    assert "missing" in shown.splitlines()[2]
    assert "experts" in shown
    data = json.loads(ckpt("fits", "moe", "moe/config.json", "--json").out)
    assert (data["fits"], data["strict"], data["loader"]) == (True, False, "MixtralForCausalLM")
    assert data["missing"]
