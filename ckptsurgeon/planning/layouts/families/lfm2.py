"""LFM2 without experts: transformers, and MLX, in whose layout the convolutions have the channels last.

Some layers have a convolution in place of the attention.
https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/lfm2.py
"""

from __future__ import annotations

from ..changes import Transposed
from ..layout import Family, Layout, Tensors
from ..parts.mlx import MLX, MLX_TESTED

__all__ = ["FAMILY"]

_LAYER = "model.layers.{n}"
_CONVOLUTION = f"{_LAYER}.conv.conv.weight"
_CONV = (_CONVOLUTION, *(f"{_LAYER}.conv.{one}" for one in ("conv.bias", "in_proj", "out_proj")))
_ATTENTION = (
    *(f"{_LAYER}.self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_LAYER}.self_attn.{kind}_layernorm.weight" for kind in "qk"),
)
_NAMES = {
    name: name
    for name in (
        *("model.embed_tokens", "model.embedding_norm.weight", "lm_head"),
        *(f"{_LAYER}.operator_norm.weight", f"{_LAYER}.ffn_norm.weight"),
        *(f"{_LAYER}.feed_forward.{kind}" for kind in ("w1", "w2", "w3")),
        *(*_CONV, *_ATTENTION),
    )
}
_MARKS = (
    "model.embedding_norm.weight",
    "model.layers.0.operator_norm.weight",
    "model.layers.0.feed_forward.w1.weight",
)


def _is_last(tensors: Tensors) -> bool:
    """Return whether convolutions have the shape (channels, size, 1), as in MLX, and not (channels, 1, size)."""
    shape = _first_convolution(tensors)
    return len(shape) == 3 and shape[2] == 1 and shape[1] > 1


def _is_second(tensors: Tensors) -> bool:
    return len(_first_convolution(tensors)) == 3 and not _is_last(tensors)


def _first_convolution(tensors: Tensors) -> tuple[int, ...]:
    """Return the shape of the first convolution in any layer; () if there is none, or if a layer has experts."""
    found: tuple[int, ...] = ()
    number = 0
    while f"{_LAYER}.operator_norm.weight".format(n=number) in tensors:
        if f"{_LAYER}.feed_forward.gate.weight".format(n=number) in tensors:
            return ()
        info = tensors.get(_CONVOLUTION.format(n=number))
        found = found or (tuple(info.shape) if info is not None else ())
        number += 1
    return found


FAMILY = Family(
    "lfm2",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0", _NAMES, _MARKS,
            computed=("model.rotary_emb", "model.pos_emb"), fits=_is_second,
        ),
        Layout(
            "mlx", MLX, MLX_TESTED, _NAMES, _MARKS, (Transposed(_CONVOLUTION, dims=(1, 2)),),
            ("model.rotary_emb", "model.pos_emb"), fits=_is_last,
        ),
    ),
    some=(_CONV, _ATTENTION),
)  # fmt: skip
