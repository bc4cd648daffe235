"""Granite with experts (GraniteMoe, PowerMoE): transformers' files, its networks in memory (stacked), and MLX.

In files, the experts of a layer are two tensors, of which the first has gate and up. mlx-lm has three.
https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/granitemoe.py
"""

from __future__ import annotations

from ...layout import Family, Layout
from ...parts.mlx import MLX, MLX_TESTED
from ...split_changes import Halved, Parted

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_MLP = f"{_LAYER}.block_sparse_moe"
_INPUT, _OUTPUT = f"{_MLP}.input_linear.weight", f"{_MLP}.output_linear.weight"
_GATE, _UP, _DOWN = (f"{_MLP}.switch_mlp.{kind}_proj.weight" for kind in ("gate", "up", "down"))
_ROUTER = f"{_MLP}.router.layer.weight"
_OTHERS = (
    "model.embed_tokens",
    *(f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkvo"),
    f"{_LAYER}.input_layernorm.weight",
    f"{_LAYER}.post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head",
)
_SAME = {name: name for name in _OTHERS}
_MEMORY = {
    _ROUTER: f"{_MLP}.router.weight",
    _INPUT: f"{_MLP}.experts.gate_up_proj",
    _OUTPUT: f"{_MLP}.experts.down_proj",
}
_EMBEDDING = "model.embed_tokens.weight"
_TESTED = "transformers 5.23.0"

FAMILY = Family(
    "granite-moe",
    (
        Layout(
            "transformers", "transformers", _TESTED, {**_SAME, **{name: name for name in _MEMORY}},
            (_EMBEDDING, _INPUT.format(n=0), _OUTPUT.format(n=0)),
            computed=("model.rotary_emb",),
        ),
        Layout(
            "stacked", "transformers 5 in memory", _TESTED, {**_SAME, **_MEMORY},
            (_EMBEDDING, *(one.format(n=0) for one in _MEMORY.values())),
            computed=("model.rotary_emb",),
        ),
        Layout(
            "mlx", MLX, MLX_TESTED, {**_SAME, _ROUTER: _ROUTER, _OUTPUT: _DOWN},
            (_EMBEDDING, _ROUTER.format(n=0), _GATE.format(n=0)),
            (Halved(_INPUT, _GATE, _UP, 1), Parted(_INPUT, _UP)),
        ),
    ),
    routed=(_ROUTER, _OUTPUT),
)  # fmt: skip
