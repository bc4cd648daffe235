"""A small LLM and two models that were tuned from it, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

__all__ = ["tuned_models"]

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (172, 64), "mlp.up_proj": (172, 64), "mlp.down_proj": (64, 172),
    "input_layernorm": (64,), "post_attention_layernorm": (64,),
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (256, 64),
    **{f"model.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in LAYER.items()},
    "model.norm.weight": (64,),
}


def tuned_models() -> None:
    """Write the folders base, math and code: configuration, tokeniser, weights."""
    torch.manual_seed(0)
    base = {key: torch.randn(shape) / 50 + (len(shape) == 1) for key, shape in SHAPES.items()}  # norms are around 1
    tokenizer = {"model": {"type": "BPE", "vocab": {f"t{row}": row for row in range(256)}, "merges": []}}
    for name in ("base", "math", "code"):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(CONFIG))
        Path(name, "tokenizer.json").write_text(json.dumps(tokenizer))
        far = 0 if name == "base" else 1 / 500
        weights = {key: (tensor + far * torch.randn_like(tensor)).bfloat16() for key, tensor in base.items()}
        save_file(weights, f"{name}/model.safetensors", metadata={"format": "pt"})
