"""LFM2 with experts: transformers' files, its networks in memory since version 5 (stacked), and MLX.

Some layers have a convolution in place of the attention; in mlx-lm, it has the channels last.
https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/lfm2_moe.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ...changes import Fused, Stacked, Transposed
from ...layout import Change, Family, Layout, Tensors
from ...parts.mlx import MLX, MLX_TESTED, mlx_stacks

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_MLP = f"{_LAYER}.feed_forward"
_WORDS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_EXPERTS = tuple(f"{_MLP}.experts.{{i}}.{kind}.weight" for kind in _WORDS)
_DENSE = {f"{_MLP}.{kind}": f"{_MLP}.{word}" for kind, word in _WORDS.items()}
_ROUTER = (f"{_MLP}.gate.weight", f"{_MLP}.expert_bias")
_CONVOLUTION = f"{_LAYER}.conv.conv.weight"
_CONV = (_CONVOLUTION, *(f"{_LAYER}.conv.{one}" for one in ("conv.bias", "in_proj", "out_proj")))
_ATTENTION = (
    *(f"{_LAYER}.self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_LAYER}.self_attn.{kind}_layernorm.weight" for kind in "qk"),
)
_OTHERS = (
    *("model.embed_tokens", "model.embedding_norm.weight", "lm_head"),
    *(f"{_LAYER}.operator_norm.weight", f"{_LAYER}.ffn_norm.weight"),
    *(*_ROUTER, *_CONV, *_ATTENTION),
)
_GATE_UP = f"{_MLP}.experts.{{i}}.w1_w3.weight"
_STACKED = (
    Fused(_EXPERTS[:2], _GATE_UP),
    Stacked(_GATE_UP, f"{_MLP}.experts.gate_up_proj"),
    Stacked(_EXPERTS[2], f"{_MLP}.experts.down_proj"),
)
_IN_MLX: tuple[Change, ...] = (*mlx_stacks(_EXPERTS, f"{_MLP}.switch_mlp"), Transposed(_CONVOLUTION, dims=(1, 2)))
_TESTED = "transformers 5.23.0"


def _shaped(tensors: Tensors) -> Family | None:
    """Return the family of this network, whose names depend on its first layer with experts; None without experts."""
    gate = _ROUTER[0]
    for number in range(1024):
        if gate.format(n=number) in tensors:
            return _family(number)
        if f"{_LAYER}.operator_norm.weight".format(n=number) not in tensors:
            break
    return None


@lru_cache(maxsize=16)
def _family(first: int) -> Family:
    """Return the family of networks in which ``first`` is the number of the first layer with experts."""
    own = {name: name for name in (*_OTHERS, *_DENSE)}
    experts = {name: name for name in _EXPERTS}
    mlp = _MLP.format(n=first)

    def form(
        name: str, library: str, tested: str, names: Mapping[str, str], mark: str, changes: tuple[Change, ...]
    ) -> Layout:
        marks = ("model.embedding_norm.weight", f"{mlp}.{mark}")
        return Layout(name, library, tested, names, marks, changes, ("model.rotary_emb", "model.pos_emb"))

    return Family(
        "lfm2-moe",
        (
            form("transformers", "transformers", _TESTED, {**own, **experts}, "experts.0.w1.weight", ()),
            form("stacked", "transformers 5 in memory", _TESTED, own, "experts.gate_up_proj", _STACKED),
            form("mlx", MLX, MLX_TESTED, {**own, **_DENSE}, "switch_mlp.gate_proj.weight", _IN_MLX),
        ),
        some=((*_DENSE,), (*_ROUTER, *_EXPERTS), _CONV, _ATTENTION),
        shaped=_shaped,
        routed=(_ROUTER[0], _EXPERTS[2]),
    )


FAMILY = _family(0)
