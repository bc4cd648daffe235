"""Llama, Mistral and other decoders with the same names: transformers, Meta, torchtune, vLLM, litgpt, Megatron-core.

The rotary embedding rotates pairs of rows. In Meta's, Mistral's and torchtune's layouts, the two rows of a pair are
side by side. vLLM joins queries, keys and values in one matrix, and gate and up in another; litgpt joins only queries,
keys and values. `../parts/megatron.py` describes Megatron-core's tensors.
https://github.com/meta-llama/llama-models, https://github.com/mistralai/mistral-inference,
https://github.com/pytorch/torchtune, https://github.com/vllm-project/vllm, https://github.com/Lightning-AI/litgpt
"""

from __future__ import annotations

from ..changes import Fused
from ..heads import heads_of_decoder
from ..layout import Family, Layout
from ..parts.megatron_mlp import dense_layouts
from ..row_changes import Paired

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_QUERIES, _KEYS, _VALUES = (f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkv")
_GATE, _UP = f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"
_META = {
    "model.embed_tokens": "tok_embeddings",
    _QUERIES: "layers.{n}.attention.wq",
    _KEYS: "layers.{n}.attention.wk",
    _VALUES: "layers.{n}.attention.wv",
    f"{_LAYER}.self_attn.o_proj": "layers.{n}.attention.wo",
    _GATE: "layers.{n}.feed_forward.w1",
    f"{_LAYER}.mlp.down_proj": "layers.{n}.feed_forward.w2",
    _UP: "layers.{n}.feed_forward.w3",
    f"{_LAYER}.input_layernorm.weight": "layers.{n}.attention_norm.weight",
    f"{_LAYER}.post_attention_layernorm.weight": "layers.{n}.ffn_norm.weight",
    "model.norm.weight": "norm.weight",
    "lm_head": "output",
}
_TORCHTUNE = {
    "model.embed_tokens": "tok_embeddings",
    _QUERIES: "layers.{n}.attn.q_proj",
    _KEYS: "layers.{n}.attn.k_proj",
    _VALUES: "layers.{n}.attn.v_proj",
    f"{_LAYER}.self_attn.o_proj": "layers.{n}.attn.output_proj",
    _GATE: "layers.{n}.mlp.w1",
    f"{_LAYER}.mlp.down_proj": "layers.{n}.mlp.w2",
    _UP: "layers.{n}.mlp.w3",
    f"{_LAYER}.input_layernorm.weight": "layers.{n}.sa_norm.scale",
    f"{_LAYER}.post_attention_layernorm.weight": "layers.{n}.mlp_norm.scale",
    "model.norm.weight": "norm.scale",
    "lm_head": "output",
}
_LITGPT = {
    "model.embed_tokens": "transformer.wte",
    f"{_LAYER}.self_attn.o_proj": "transformer.h.{n}.attn.proj",
    _GATE: "transformer.h.{n}.mlp.fc_1",
    _UP: "transformer.h.{n}.mlp.fc_2",
    f"{_LAYER}.mlp.down_proj": "transformer.h.{n}.mlp.proj",
    f"{_LAYER}.input_layernorm.weight": "transformer.h.{n}.norm_1.weight",
    f"{_LAYER}.post_attention_layernorm.weight": "transformer.h.{n}.norm_2.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head": "lm_head",
    f"{_LAYER}.self_attn.q_norm.weight": "transformer.h.{n}.attn.norm_q.weight",
    f"{_LAYER}.self_attn.k_norm.weight": "transformer.h.{n}.attn.norm_k.weight",
}
_HEAD_NORMS = tuple(f"{_LAYER}.self_attn.{kind}_norm.weight" for kind in "qk")  # Qwen 3
_NAMES = {ours: ours for ours in (*_META, *_HEAD_NORMS)}
_FUSED = {_QUERIES, _KEYS, _VALUES, _GATE, _UP}
_JOINED = (_QUERIES, _KEYS, _VALUES), ("heads", "keys", "keys")
_PAIRS = (Paired(_QUERIES, "heads"), Paired(_KEYS, "keys"))

FAMILY = Family(
    "llama",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0", _NAMES,
            ("model.embed_tokens.weight", f"{_QUERIES}.weight".format(n=0), f"{_GATE}.weight".format(n=0)),
            computed=("model.layers.*.self_attn.rotary_emb", "model.rotary_emb"),
        ),
        Layout(
            "meta", "Meta, Mistral, torchtitan", "torchtune 0.6.1", _META,
            ("tok_embeddings.weight", "layers.0.attention.wq.weight"), _PAIRS, ("rope.freqs",),
        ),
        Layout(
            "torchtune", "torchtune", "torchtune 0.6.1", _TORCHTUNE,
            ("tok_embeddings.weight", "layers.0.attn.q_proj.weight"), _PAIRS,
            fits=lambda tensors: "layers.0.attn.q_proj.bias" not in tensors,  # Qwen 2, whose heads have two halves
        ),
        Layout(
            "fused", "vLLM, SGLang; Phi-3 in transformers", "transformers 5.23.0",
            {ours: ours for ours in _NAMES if ours not in _FUSED},
            ("model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight"),
            (
                Fused(_JOINED[0], f"{_LAYER}.self_attn.qkv_proj", _JOINED[1]),
                Fused((_GATE, _UP), f"{_LAYER}.mlp.gate_up_proj"),
            ),
        ),
        Layout(
            "litgpt", "litgpt", "litgpt 0.5.13", _LITGPT,
            ("transformer.wte.weight", "transformer.h.0.attn.qkv.weight", "transformer.h.0.mlp.fc_2.weight"),
            (Fused(_JOINED[0], "transformer.h.{n}.attn.qkv", _JOINED[1]),),
            needed={"lm_head": "model.embed_tokens"},
        ),
        *dense_layouts(),
    ),
    heads_of_decoder,
    rotated=("llama", "mistral"),
)  # fmt: skip
