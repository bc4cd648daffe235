"""Tiny models of DeepSeek V2 and V3, as transformers makes and saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

__all__ = ["KINDS", "LAYERS", "SIZES", "as_fp8", "opened", "saved", "with_predicting_layer"]

LAYERS, HEADS, PLAIN, ROTARY, VALUE, RANK, EXPERTS = 3, 4, 32, 16, 24, 32, 12
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "n_shared_experts": 2,
    "n_routed_experts": EXPERTS, "kv_lora_rank": RANK, "q_lora_rank": 32, "qk_rope_head_dim": ROTARY,
    "v_head_dim": VALUE, "qk_nope_head_dim": PLAIN, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "max_position_embeddings": 128, "n_group": 4, "topk_group": 2,
}  # fmt: skip
"""More experts than ten: expert 10 comes after expert 9, and not after expert 1."""
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
    "mscale_all_dim": 0.707, "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "v3": ("DeepseekV3", {"num_nextn_predict_layers": 1, "rope_parameters": YARN}),
    "v3-without-query-rank": ("DeepseekV3", {"q_lora_rank": None}),
    "v2": ("DeepseekV2", {"topk_method": "group_limited_greedy"}),
    "v2-lite": ("DeepseekV2", {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_parameters": YARN}),
}
"""Of each kind: its class in transformers, and its fields besides those of ``SIZES``."""


def saved(kind: str, **fields: Any) -> dict[str, torch.Tensor]:
    """The tensors of a tiny model, which is saved as transformers does in the folder ``model``."""
    transformers = pytest.importorskip("transformers")
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **fields})
    torch.manual_seed(0)
    network = getattr(transformers, f"{name}ForCausalLM")(config).bfloat16()
    for key, value in network.state_dict().items():
        if value.dim() == 1:
            value.copy_(torch.randn(value.shape))
        assert value.dtype == torch.bfloat16, key
    network.save_pretrained("model")
    return load_file("model/model.safetensors")


def opened(folder: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model that transformers makes of a folder, which must have all of its tensors and no other; and its state."""
    transformers = pytest.importorskip("transformers")
    network, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not told["missing_keys"] | told["unexpected_keys"] | told["mismatched_keys"]
    return network, network.state_dict()


def with_predicting_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with a layer that predicts a second token, as DeepSeek's own files have it."""
    last, behind = f"model.layers.{LAYERS - 1}.", f"model.layers.{LAYERS}."
    found = {**tensors}
    found |= {behind + key.removeprefix(last): value.clone() for key, value in tensors.items() if key.startswith(last)}
    found |= {f"{behind}{name}.weight": torch.ones(64).bfloat16() for name in ("enorm", "hnorm", "shared_head.norm")}
    found[f"{behind}eh_proj.weight"] = torch.randn(64, 128).bfloat16()
    found[f"{behind}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    found[f"{behind}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return found


def as_fp8(tensors: dict[str, torch.Tensor]) -> None:
    """Write the folder ``model`` anew: linear layers as 8-bit floats, with a scale for each block of 128 by 128."""
    found = dict[str, torch.Tensor]()
    for key, value in tensors.items():
        if not key.endswith("_proj.weight") or "eh_proj" in key:
            found[key] = value
            continue
        rows, columns = ((size + 127) // 128 for size in value.shape)
        scales = torch.rand(rows, columns) / 100 + 0.001
        whole = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: value.shape[0], : value.shape[1]]
        found[key] = (value.float() / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
        found[f"{key}_scale_inv"] = scales
    save_file(found, "model/model.safetensors", {"format": "pt"})
    config = json.loads(Path("model/config.json").read_text())
    settings = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    }  # fmt: skip
    Path("model/config.json").write_text(json.dumps({**config, "quantization_config": settings}))
