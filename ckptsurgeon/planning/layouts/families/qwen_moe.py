"""Qwen2-MoE, Qwen3-MoE and OLMoE: transformers' files, its networks in memory since version 5 (stacked), Megatron.

Layers without experts, and the experts that all tokens share, have the same names in the first two.
"""

from __future__ import annotations

from ..changes import Fused, Stacked
from ..heads import heads_of_decoder
from ..layout import Family, Layout
from ..parts.megatron import HEAD_NORMS
from ..parts.megatron_mlp import Experts, expert_layouts

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_EXPERT, _STACK = f"{_LAYER}.mlp.experts.{{i}}", f"{_LAYER}.mlp.experts"
_KINDS = ("gate_proj", "up_proj", "down_proj")
_DENSE = tuple(f"{_LAYER}.mlp.{kind}" for kind in _KINDS)
_AROUND = (
    f"{_LAYER}.mlp.gate.weight",
    f"{_LAYER}.mlp.shared_expert_gate.weight",
    *(f"{_LAYER}.mlp.shared_expert.{kind}" for kind in _KINDS),
)
_OTHERS = (
    "model.embed_tokens",
    *(f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkvo"),
    *(f"{_LAYER}.self_attn.{kind}_norm.weight" for kind in "qk"),
    f"{_LAYER}.input_layernorm.weight",
    f"{_LAYER}.post_attention_layernorm.weight",
    *_DENSE,
    *_AROUND,
    "model.norm.weight",
    "lm_head",
)
_GATE, _UP, _DOWN = _EXPERTS = tuple(f"{_EXPERT}.{kind}.weight" for kind in _KINDS)
_EMBEDDING = "model.embed_tokens.weight"
_OWN = ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.shared_expert_gate.weight")
"""A tensor of Qwen3-MoE and OLMoE, and one of Qwen2-MoE, that Mixtral does not have."""
_GATE_UP = f"{_EXPERT}.gate_up_proj.weight"
_CHANGES = (
    Fused((_GATE, _UP), _GATE_UP),
    Stacked(_GATE_UP, f"{_STACK}.gate_up_proj"),
    Stacked(_DOWN, f"{_STACK}.down_proj"),
)
_MEGATRON = Experts(
    _GATE,
    _UP,
    _DOWN,
    {
        **HEAD_NORMS,
        "mlp.gate.weight": "mlp.router.weight",
        "mlp.shared_expert_gate.weight": "mlp.shared_experts.gate_weight",
        "mlp.shared_expert.down_proj": "mlp.shared_experts.linear_fc2",
    },
    (f"{_LAYER}.mlp.shared_expert.gate_proj", f"{_LAYER}.mlp.shared_expert.up_proj"),
)
_COMPUTED = ("model.rotary_emb",)

FAMILY = Family(
    "qwen-moe",
    (
        *(
            Layout(
                "transformers", "transformers", "transformers 5.23.0",
                {name: name for name in (*_OTHERS, *_EXPERTS)},
                (_EMBEDDING, "model.layers.0.mlp.experts.0.gate_proj.weight", own),
                computed=_COMPUTED,
            )
            for own in _OWN
        ),
        *(
            Layout(
                "stacked", "transformers 5 in memory", "transformers 5.23.0", {name: name for name in _OTHERS},
                (_EMBEDDING, "model.layers.0.mlp.experts.gate_up_proj", own),
                _CHANGES,
                _COMPUTED,
            )
            for own in _OWN
        ),
        *(
            layout
            for own in ("self_attention.q_layernorm.weight", "mlp.shared_experts.gate_weight")
            for layout in expert_layouts(_MEGATRON, own, has_dense=True)
        ),
    ),
    heads_of_decoder,
    some=(_DENSE, (*_AROUND, *_EXPERTS)),
)  # fmt: skip
