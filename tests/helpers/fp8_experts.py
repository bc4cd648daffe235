"""Tiny models with experts that transformers itself has quantised to 8-bit floats and saved.

Its quantiser asks for a GPU; everything that it computes and saves also runs without one, so only that question is
left out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = ["KINDS", "PLAIN", "SAVED", "decoded", "quantised", "saved"]

PLAIN, SAVED = "plain", "model"
BLOCK = (32, 32)
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Moe", {"head_dim": 32, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "deepseek": ("DeepseekV3", {
        "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32,
        "first_k_dense_replace": 0, "n_shared_experts": 1,
    }),
    "granite": ("GraniteMoe", {"num_local_experts": 4}),
}  # fmt: skip
"""Of each kind: its class in transformers, and its fields besides those of ``SIZES``."""


def saved(kind: str, **fields: Any) -> None:
    """Save a model twice: in the folder ``PLAIN`` in bfloat16, and in ``SAVED`` as transformers quantises it."""
    transformers = pytest.importorskip("transformers")
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **fields})
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).bfloat16().save_pretrained(PLAIN)
    wanted = transformers.FineGrainedFP8Config(weight_block_size=BLOCK)
    quantised(PLAIN, quantization_config=wanted).save_pretrained(SAVED)


def quantised(folder: str, **options: Any) -> Any:
    """The model of a folder as transformers has it on a GPU: with its codes and scales."""
    transformers = pytest.importorskip("transformers")
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer as Quantiser

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Quantiser, "validate_environment", lambda self, *_, **__: None)
        network, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map="cpu", output_loading_info=True, **options
        )
    assert options or not told["missing_keys"] | told["unexpected_keys"] | told["mismatched_keys"]
    return network


def decoded(folder: str) -> dict[str, torch.Tensor]:
    """The weights of a quantised model by transformers' own names, decoded by transformers' own code to float32."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    state, decode = quantised(folder).state_dict(), Fp8Dequantize(None)._dequantize_one
    found = {}
    for key, value in state.items():
        scales = state.get(f"{key}_scale_inv")
        if not key.endswith("_scale_inv"):
            found[key] = value.float() if scales is None else decode(value, scales, torch.float32)
    return found
