"""Qwen2-MoE, Qwen3-MoE and OLMoE: transformers' files, its networks in memory since version 5 (stacked), MLX, Megatron.

Layers without experts, and the experts that all tokens share, have the same names in the first three. In Megatron-core
with Transformer Engine, the norm before the MLP has another name in layers without experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ...changes import Fused, Stacked
from ...heads import heads_of_decoder
from ...layout import Family, Layout, Tensors
from ...parts.megatron import HEAD_NORMS
from ...parts.megatron_mlp import Experts, expert_layouts
from ...parts.mlx import MLX, MLX_TESTED, mlx_stacks
from ...parts.predictors import Layers, layers_of
from ...parts.vllm import KERNELS, VLLM, VLLM_TESTED, fused_experts, fused_modules, unfused

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
_OWN = {
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "mlp.shared_expert_gate.weight": "mlp.shared_experts.gate_weight",
}
"""Keys that Mixtral does not have, mapped to Megatron's keys: one of Qwen3-MoE and OLMoE, and one of Qwen2-MoE."""
_GATE_UP = f"{_EXPERT}.gate_up_proj.weight"
_CHANGES = (
    Fused((_GATE, _UP), _GATE_UP),
    Stacked(_GATE_UP, f"{_STACK}.gate_up_proj"),
    Stacked(_DOWN, f"{_STACK}.down_proj"),
)
_MLX_CHANGES = mlx_stacks(_EXPERTS, f"{_LAYER}.mlp.switch_mlp")
_FUSED_CHANGES = (
    *fused_modules([f"{_LAYER}.mlp", f"{_LAYER}.mlp.shared_expert"]),
    *fused_experts(_EXPERTS, _STACK),
)
_TESTED = "transformers 5.23.0"
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
_LINEAR = "model.layers.0.linear_attn.conv1d.weight"
"""A key of Qwen3-Next, which has all marks of this family: without it, all keys would have to be compared."""
_COMPUTED = ("model.rotary_emb",)


def _shaped(tensors: Tensors) -> Family:
    """Return the family of this network, whose names depend on which layers have no experts."""
    layers = layers_of(tensors)
    return _family(layers.dense) if layers else FAMILY


@lru_cache(maxsize=16)
def _family(dense: tuple[int, ...]) -> Family:
    """Return the family of networks in which the layers with the numbers ``dense`` have no experts."""
    norms = tuple(f"model.layers.{n}.post_attention_layernorm.weight" for n in dense)
    others = {name: name for name in (*norms, *_OTHERS)}
    return Family(
        "qwen-moe",
        (
            *_in_transformers(others, Layers(dense).first),
            *(one for own in _OWN.values() for one in expert_layouts(_MEGATRON, own, layers=Layers(dense))),
        ),
        heads_of_decoder,
        some=(_DENSE, (*_AROUND, *_EXPERTS)),
        shaped=_shaped,
        routed=(_AROUND[0], _DOWN),
    )


def _in_transformers(others: dict[str, str], first: int) -> Sequence[Layout]:
    """Return the layouts of transformers' files and networks in memory, of MLX and of vLLM.

    ``others`` are all names except those of experts, and ``first`` is the number of the first layer with experts.
    """
    experts = {name: name for name in _EXPERTS}
    return [
        Layout(
            name, library, tested, names,
            (_EMBEDDING, f"model.layers.{first}.mlp.{mark}", f"model.layers.{first}.{own}"),
            changes,
            _COMPUTED,
            settings=KERNELS if library is VLLM else "",
            fits=lambda tensors: _LINEAR not in tensors,
        )
        for name, library, tested, names, mark, changes in (
            ("transformers", "transformers", _TESTED, {**others, **experts}, "experts.0.gate_proj.weight", ()),
            ("stacked", "transformers 5 in memory", _TESTED, others, "experts.gate_up_proj", _CHANGES),
            ("mlx", MLX, MLX_TESTED, others, "switch_mlp.gate_proj.weight", _MLX_CHANGES),
            ("fused", VLLM, VLLM_TESTED, unfused(others), "experts.w13_weight", _FUSED_CHANGES),
        )
        for own in _OWN
    ]  # fmt: skip


FAMILY = _family(())
