"""The names of tensors in llama.cpp and in transformers, for each architecture of llama.cpp.

https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "Architecture"]

_COMMON = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "model.layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "model.layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "model.layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "model.layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
    "model.layers.{n}.mlp.gate_proj": "blk.{n}.ffn_gate",
    "model.layers.{n}.mlp.up_proj": "blk.{n}.ffn_up",
    "model.layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
}
_ONE_NORM = {"model.layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm"}
_FOUR_NORMS = {
    "model.layers.{n}.post_attention_layernorm": "blk.{n}.post_attention_norm",
    "model.layers.{n}.pre_feedforward_layernorm": "blk.{n}.ffn_norm",
    "model.layers.{n}.post_feedforward_layernorm": "blk.{n}.post_ffw_norm",
}
_NORMS_OF_HEADS = {
    "model.layers.{n}.self_attn.q_norm": "blk.{n}.attn_q_norm",
    "model.layers.{n}.self_attn.k_norm": "blk.{n}.attn_k_norm",
}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores an architecture: ``names`` maps the modules of transformers to its own.

    With ``pairs``, the rows of the queries and keys of a head are in the order of the pairs that the rotary embedding
    turns, and not first halves before second halves. With ``one_more``, the weights of norms are stored plus one.
    """

    names: Mapping[str, str]
    pairs: bool = False
    one_more: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_COMMON | _ONE_NORM, pairs=True),
    "qwen2": Architecture(_COMMON | _ONE_NORM),
    "qwen3": Architecture(_COMMON | _ONE_NORM | _NORMS_OF_HEADS),
    "gemma": Architecture(_COMMON | _ONE_NORM, one_more=True),
    "gemma2": Architecture(_COMMON | _FOUR_NORMS, one_more=True),
    "gemma3": Architecture(_COMMON | _FOUR_NORMS | _NORMS_OF_HEADS, one_more=True),
}
MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}  # fmt: skip
"""The architecture of each ``model_type`` of transformers."""
