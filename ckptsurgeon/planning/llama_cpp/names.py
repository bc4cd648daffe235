"""The names of tensors in llama.cpp and in transformers, for each architecture of llama.cpp.

https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ...util.text import escape

__all__ = [
    "ARCHITECTURES",
    "COHERE",
    "DEEPSEEK",
    "FUSED",
    "GPT_OSS",
    "KEYS_AND_VALUES",
    "PHI_3",
    "ROUTERS",
    "ROUTER_BIAS",
    "SHARED_GATE",
    "Architecture",
    "in_llama_cpp",
    "in_transformers",
    "layout_hint",
]

_COMMON = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "model.layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "model.layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "model.layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "model.layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
}
_DENSE = {
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
SHARED_GATE = "model.layers.{n}.mlp.shared_expert_gate"
"""The gate of a shared expert: a matrix with one row in transformers, a vector in llama.cpp."""
ROUTER = "blk.{n}.ffn_gate_inp"
_SHARED_EXPERT = {
    "model.layers.{n}.mlp.shared_expert.gate_proj": "blk.{n}.ffn_gate_shexp",
    "model.layers.{n}.mlp.shared_expert.up_proj": "blk.{n}.ffn_up_shexp",
    "model.layers.{n}.mlp.shared_expert.down_proj": "blk.{n}.ffn_down_shexp",
    SHARED_GATE: "blk.{n}.ffn_gate_inp_shexp",
}
_EXPERTS = {
    "model.layers.{n}.mlp.experts.{i}.gate_proj": "blk.{n}.ffn_gate_exps",
    "model.layers.{n}.mlp.experts.{i}.up_proj": "blk.{n}.ffn_up_exps",
    "model.layers.{n}.mlp.experts.{i}.down_proj": "blk.{n}.ffn_down_exps",
}
_EXPERTS_OF_MIXTRAL = {
    "model.layers.{n}.block_sparse_moe.experts.{i}.w1": "blk.{n}.ffn_gate_exps",
    "model.layers.{n}.block_sparse_moe.experts.{i}.w3": "blk.{n}.ffn_up_exps",
    "model.layers.{n}.block_sparse_moe.experts.{i}.w2": "blk.{n}.ffn_down_exps",
}
ROUTERS = (
    "model.layers.{n}.block_sparse_moe.gate", "model.layers.{n}.mlp.gate", "model.layers.{n}.mlp.router", ROUTER,
)  # fmt: skip
"""The layers that choose experts, in both layouts; llama.cpp needs them in float32."""
ROUTER_BIAS = "model.layers.{n}.mlp.gate.e_score_correction_bias"
"""The bias that DeepSeek V3 adds to the scores of experts to choose experts; it does not change their weights."""
KEYS_AND_VALUES = "model.layers.{n}.self_attn.kv_b_proj"
"""The module that makes keys and values from the latent vector that they share."""
_LATENT = {
    "model.layers.{n}.self_attn.q_a_proj": "blk.{n}.attn_q_a",
    "model.layers.{n}.self_attn.q_a_layernorm": "blk.{n}.attn_q_a_norm",
    "model.layers.{n}.self_attn.q_b_proj": "blk.{n}.attn_q_b",
    "model.layers.{n}.self_attn.kv_a_proj_with_mqa": "blk.{n}.attn_kv_a_mqa",
    "model.layers.{n}.self_attn.kv_a_layernorm": "blk.{n}.attn_kv_a_norm",
    KEYS_AND_VALUES: "blk.{n}.attn_kv_b",
}
_SHARED_EXPERTS = {
    "model.layers.{n}.mlp.shared_experts.gate_proj": "blk.{n}.ffn_gate_shexp",
    "model.layers.{n}.mlp.shared_experts.up_proj": "blk.{n}.ffn_up_shexp",
    "model.layers.{n}.mlp.shared_experts.down_proj": "blk.{n}.ffn_down_shexp",
}
_GPT_OSS = {
    "model.layers.{n}.post_attention_layernorm": "blk.{n}.post_attention_norm",
    "model.layers.{n}.self_attn.sinks": "blk.{n}.attn_sinks.weight",
    "model.layers.{n}.mlp.router": ROUTER,
    "model.layers.{n}.mlp.experts.down_proj": "blk.{n}.ffn_down_exps.weight",
    "model.layers.{n}.mlp.experts.down_proj_bias": "blk.{n}.ffn_down_exps.bias",
}
_OLMO_2 = {
    "model.layers.{n}.post_attention_layernorm": "blk.{n}.post_attention_norm",
    "model.layers.{n}.post_feedforward_layernorm": "blk.{n}.post_ffw_norm",
}
_STARCODER_2 = {"model.layers.{n}.mlp.c_fc": "blk.{n}.ffn_up", "model.layers.{n}.mlp.c_proj": "blk.{n}.ffn_down"}
FUSED = "model.layers.{n}.self_attn.qkv_proj"
"""The module of Phi-3 that computes queries, keys and values."""
_PHI_3 = {
    FUSED: "blk.{n}.attn_qkv",
    "model.layers.{n}.mlp.gate_up_proj": "blk.{n}.ffn_up",
    "model.layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
}
_WITHOUT_HEAD = {name: theirs for name, theirs in _COMMON.items() if name != "lm_head"}
_WITHOUT_FIRST_NORM = {name: theirs for name, theirs in _COMMON.items() if not name.endswith("input_layernorm")}
_ONE_OF_ATTENTION = {
    name: theirs for name, theirs in _COMMON.items() if not name.endswith((".q_proj", ".k_proj", ".v_proj"))
}
COHERE, PHI_3 = "command-r", "phi3"
GPT_OSS = "gpt-oss"
DEEPSEEK = "deepseek2"
"""llama.cpp's architecture of DeepSeek V2 and V3, and of Kimi K2."""
_ROUTER_OF_MIXTRAL, _ROUTER_OF_QWEN = ({name: ROUTER} for name in ROUTERS[:2])


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores an architecture: ``names`` maps the modules of transformers to the modules of llama.cpp.

    The rotary embedding rotates pairs of rows of queries and keys. If ``pairs`` is true, the two rows of a pair are
    next to each other; otherwise a head has all first rows, then all second rows. If ``one_more`` is true, the weights
    of norms are stored with 1 added. ``experts`` maps the modules of the expert ``{i}`` to the tensor that contains all
    experts. If ``normed`` is true, the weights of the chosen experts are divided by their sum.
    """

    names: Mapping[str, str]
    pairs: bool = False
    one_more: bool = False
    experts: Mapping[str, str] = field(default_factory=dict)
    normed: bool = True


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_COMMON | _DENSE | _ONE_NORM | _ROUTER_OF_MIXTRAL, pairs=True, experts=_EXPERTS_OF_MIXTRAL),
    "qwen2": Architecture(_COMMON | _DENSE | _ONE_NORM),
    "qwen2moe": Architecture(_COMMON | _ONE_NORM | _ROUTER_OF_QWEN | _SHARED_EXPERT, experts=_EXPERTS, normed=False),
    "qwen3": Architecture(_COMMON | _DENSE | _ONE_NORM | _NORMS_OF_HEADS),
    "qwen3moe": Architecture(_COMMON | _ONE_NORM | _NORMS_OF_HEADS | _ROUTER_OF_QWEN, experts=_EXPERTS),
    DEEPSEEK: Architecture(
        {ROUTER_BIAS: "blk.{n}.exp_probs_b.bias"}
        | {name: theirs for name, theirs in _COMMON.items() if not name.endswith((".k_proj", ".v_proj"))}
        | (_LATENT | _DENSE | _ONE_NORM | _ROUTER_OF_QWEN | _SHARED_EXPERTS),
        experts=_EXPERTS,
    ),
    PHI_3: Architecture(_ONE_OF_ATTENTION | _ONE_NORM | _PHI_3),
    COHERE: Architecture(_WITHOUT_HEAD | _DENSE | _NORMS_OF_HEADS),
    "olmo2": Architecture(_WITHOUT_FIRST_NORM | _DENSE | _OLMO_2 | _NORMS_OF_HEADS),
    "starcoder2": Architecture(_COMMON | _ONE_NORM | _STARCODER_2),
    GPT_OSS: Architecture(_COMMON | _GPT_OSS),
    "gemma": Architecture(_COMMON | _DENSE | _ONE_NORM, one_more=True),
    "gemma2": Architecture(_COMMON | _DENSE | _FOUR_NORMS, one_more=True),
    "gemma3": Architecture(_COMMON | _DENSE | _FOUR_NORMS | _NORMS_OF_HEADS, one_more=True),
}


def in_llama_cpp(keys: Iterable[str]) -> bool:
    """Return whether tensors have llama.cpp's names."""
    return any(key.split(".")[0] in ("token_embd", "blk", "output", "output_norm", "rope_freqs") for key in keys)


def in_transformers(keys: Iterable[str]) -> bool:
    """Return whether tensors have the names that transformers gives a language model."""
    return any(key.startswith(("model.", "lm_head.")) for key in keys)


def layout_hint(models: Iterable[tuple[str, Collection[str]]], *, convert: str = "") -> str:
    """Return a hint if some models have llama.cpp's names, and others transformers' names; '' if all have the same.

    ``models`` are the names and the keys of the models. The hint says how to convert one model to the names of the
    others: the model called ``convert``, or by default the first with the names of llama.cpp.
    """
    given = [(name, any(key.startswith(("blk.", "token_embd.")) for key in keys), keys) for name, keys in models]
    theirs = [name for name, is_theirs, _ in given if is_theirs]
    ours = [name for name, is_theirs, keys in given if not is_theirs and in_transformers(keys)]
    if not (theirs and ours):
        return ""
    which = convert or theirs[0]
    layout, output = ("transformers", "NAME/") if which in theirs else ("gguf", "NAME.gguf")
    return (
        f"{escape(theirs[0])} has the names and layout of llama.cpp, {escape(ours[0])} those of transformers: first "
        f"run ckpt convert {escape(which)} --layout {layout} -o {output}."
    )
