"""Layouts of Qwen3-Next: files of transformers, its networks of version 5 (experts stacked), and MLX.

Some layers have linear attention. In mlx-lm, its convolution has the channels last, and the weights of norms (except
the norm in the linear attention) include the 1 that transformers adds to them when it computes.
https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/qwen3_next.py
"""

from __future__ import annotations

from ...changes import Fused, Stacked, Transposed
from ...layout import Change, Family, Layout
from ...parts.mlx import MLX, MLX_TESTED, mlx_stacks
from ...split_changes import Shifted

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_EXPERT, _STACK = f"{_LAYER}.mlp.experts.{{i}}", f"{_LAYER}.mlp.experts"
_KINDS = ("gate_proj", "up_proj", "down_proj")
_EXPERTS = tuple(f"{_EXPERT}.{kind}.weight" for kind in _KINDS)
_AROUND = (
    f"{_LAYER}.mlp.gate.weight",
    f"{_LAYER}.mlp.shared_expert_gate.weight",
    *(f"{_LAYER}.mlp.shared_expert.{kind}" for kind in _KINDS),
)
_DENSE = tuple(f"{_LAYER}.mlp.{kind}" for kind in _KINDS)
_CONVOLUTION = f"{_LAYER}.linear_attn.conv1d.weight"
_LINEAR = (
    _CONVOLUTION,
    *(f"{_LAYER}.linear_attn.{one}" for one in ("A_log", "dt_bias", "norm.weight")),
    *(f"{_LAYER}.linear_attn.{one}.weight" for one in ("in_proj_ba", "in_proj_qkvz", "out_proj")),
)
_HEAD_NORMS = tuple(f"{_LAYER}.self_attn.{kind}_norm.weight" for kind in "qk")
_ATTENTION = (*(f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkvo"), *_HEAD_NORMS)
_NORMS = (f"{_LAYER}.input_layernorm.weight", f"{_LAYER}.post_attention_layernorm.weight", "model.norm.weight")
_OTHERS = ("model.embed_tokens", *_LINEAR, *_ATTENTION, *_NORMS, *_DENSE, *_AROUND, "lm_head")
_GATE_UP = f"{_EXPERT}.gate_up_proj.weight"
_TRANSFORMERS = (
    Fused(_EXPERTS[:2], _GATE_UP),
    Stacked(_GATE_UP, f"{_STACK}.gate_up_proj"),
    Stacked(_EXPERTS[2], f"{_STACK}.down_proj"),
)
_IN_MLX: tuple[Change, ...] = (
    *mlx_stacks(_EXPERTS, f"{_LAYER}.mlp.switch_mlp"),
    Transposed(_CONVOLUTION, dims=(1, 2)),
    *(Shifted(name, 1) for name in (*_NORMS, *_HEAD_NORMS)),
)
_WITH_ONE = (
    "norms become float32: MLX stores them with the 1 that transformers adds to them when it computes; this "
    "changes them by at most 6e-8"
)
_WITHOUT_ONE = "norms are float32, without the 1 that MLX stores in them: transformers adds it when it computes"


def _form(
    name: str, library: str, tested: str, experts: tuple[str, ...], mark: str, changes: tuple[Change, ...]
) -> Layout:
    """Return a layout; ``experts`` are the names of the tensors of an expert if each expert has its own tensors.

    ``mark`` is the name of a tensor of the first layer's experts, without the prefix of the MLP.
    """
    first = _LAYER.format(n=0)
    return Layout(
        name, library, tested, {one: one for one in (*_OTHERS, *experts)},
        ("model.embed_tokens.weight", f"{first}.mlp.{mark}", _CONVOLUTION.format(n=0)),
        changes,
        ("model.rotary_emb",),
        written=_WITH_ONE if library is MLX else "",
        read=_WITHOUT_ONE if library is MLX else "",
    )  # fmt: skip


FAMILY = Family(
    "qwen3-next",
    (
        _form("transformers", "transformers", "transformers 5.23.0", _EXPERTS, "experts.0.gate_proj.weight", ()),
        _form("stacked", "transformers 5 in memory", "transformers 5.23.0", (), "experts.gate_up_proj", _TRANSFORMERS),
        _form("mlx", MLX, MLX_TESTED, (), "switch_mlp.gate_proj.weight", _IN_MLX),
    ),
    some=(_DENSE, (*_AROUND, *_EXPERTS), _LINEAR, _ATTENTION),
    routed=(_AROUND[0], _EXPERTS[2]),
)
