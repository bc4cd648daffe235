"""Mixtral: transformers' files, its networks in memory since version 5 (stacked), MLX, vLLM, Mistral, Megatron.

https://github.com/mistralai/mistral-inference
"""

from __future__ import annotations

from ...changes import Fused, Stacked
from ...heads import heads_of_decoder
from ...layout import Family, Layout
from ...parts.megatron_mlp import Experts, expert_layouts
from ...parts.mlx import MLX, MLX_TESTED, mlx_stacks
from ...parts.vllm import KERNELS, VLLM, VLLM_TESTED, fused_experts, fused_modules, unfused
from ...row_changes import Paired

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_EXPERT = f"{_LAYER}.block_sparse_moe.experts.{{i}}"
_QUERIES, _KEYS = f"{_LAYER}.self_attn.q_proj", f"{_LAYER}.self_attn.k_proj"
_EXPERTS = {
    f"{_EXPERT}.w{number}{end}": f"layers.{{n}}.feed_forward.experts.{{i}}.w{number}{end}"
    for number in (1, 2, 3)
    for end in (".weight", "")  # the second is for the other tensors of a quantised expert
}
_OTHERS = {
    "model.embed_tokens": "tok_embeddings",
    _QUERIES: "layers.{n}.attention.wq",
    _KEYS: "layers.{n}.attention.wk",
    f"{_LAYER}.self_attn.v_proj": "layers.{n}.attention.wv",
    f"{_LAYER}.self_attn.o_proj": "layers.{n}.attention.wo",
    f"{_LAYER}.block_sparse_moe.gate.weight": "layers.{n}.feed_forward.gate.weight",
    f"{_LAYER}.input_layernorm.weight": "layers.{n}.attention_norm.weight",
    f"{_LAYER}.post_attention_layernorm.weight": "layers.{n}.ffn_norm.weight",
    "model.norm.weight": "norm.weight",
    "lm_head": "output",
}
_NAMES = {ours: ours for ours in (*_OTHERS, *_EXPERTS)}
_STACK, _MODULE = f"{_LAYER}.mlp.experts", f"{_LAYER}.block_sparse_moe"
_MATRICES = _GATE, _UP, _DOWN = tuple(f"{_EXPERT}.w{number}.weight" for number in (1, 3, 2))
_MEGATRON = Experts(
    _GATE,
    _UP,
    _DOWN,
    {"block_sparse_moe.gate.weight": "mlp.router.weight"},
)


FAMILY = Family(
    "mixtral",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0", _NAMES,
            ("model.embed_tokens.weight", f"{_EXPERT}.w1.weight".format(n=0, i=0)),
            computed=("model.layers.*.self_attn.rotary_emb", "model.rotary_emb"),
        ),
        Layout(
            "stacked", "transformers 5 in memory", "transformers 5.23.0",
            {ours: ours.replace("block_sparse_moe", "mlp") for ours in _OTHERS},
            ("model.embed_tokens.weight", f"{_STACK}.gate_up_proj".format(n=0)),
            (
                Fused((_GATE, _UP), f"{_EXPERT}.w1_w3.weight"),
                Stacked(f"{_EXPERT}.w1_w3.weight", f"{_STACK}.gate_up_proj"),
                Stacked(_DOWN, f"{_STACK}.down_proj"),
            ),
            ("model.rotary_emb",),
        ),
        Layout(
            "mlx", MLX, MLX_TESTED, {ours: ours for ours in _OTHERS},
            ("model.embed_tokens.weight", f"{_MODULE}.switch_mlp.gate_proj.weight".format(n=0)),
            mlx_stacks(_MATRICES, f"{_MODULE}.switch_mlp"),
        ),
        Layout(
            "fused", VLLM, VLLM_TESTED, unfused(_OTHERS),
            ("model.embed_tokens.weight", f"{_MODULE}.experts.w13_weight".format(n=0)),
            (*fused_modules(), *fused_experts(_MATRICES, f"{_MODULE}.experts")),
            settings=KERNELS,
        ),
        Layout(
            "mistral", "Mistral", "mistral-inference 1.6.0", {**_OTHERS, **_EXPERTS},
            ("tok_embeddings.weight", "layers.0.feed_forward.experts.0.w1.weight"),
            (Paired(_QUERIES, "heads"), Paired(_KEYS, "keys")),
            ("rope.freqs",),
        ),
        *expert_layouts(_MEGATRON),
    ),
    heads_of_decoder,
    rotated=("mixtral",),
    routed=(f"{_LAYER}.block_sparse_moe.gate.weight", f"{_EXPERT}.w2.weight"),
)  # fmt: skip
