"""GPT-NeoX and Pythia: transformers' layouts, and litgpt's, which has all queries first, then keys, then values.

https://github.com/Lightning-AI/litgpt
"""

from __future__ import annotations

from ..changes import Regrouped
from ..heads import heads_in
from ..layout import Family, Layout, Tensors

__all__ = ["FAMILY"]

_LAYER = "gpt_neox.layers.{n}"
_QKV = f"{_LAYER}.attention.query_key_value"
_LITGPT = {
    "gpt_neox.embed_in": "transformer.wte",
    _QKV: "transformer.h.{n}.attn.qkv",
    f"{_LAYER}.attention.dense": "transformer.h.{n}.attn.proj",
    f"{_LAYER}.input_layernorm": "transformer.h.{n}.norm_1",
    f"{_LAYER}.post_attention_layernorm": "transformer.h.{n}.norm_2",
    f"{_LAYER}.mlp.dense_h_to_4h": "transformer.h.{n}.mlp.fc",
    f"{_LAYER}.mlp.dense_4h_to_h": "transformer.h.{n}.mlp.proj",
    "gpt_neox.final_layer_norm": "transformer.ln_f",
    "embed_out.weight": "lm_head.weight",
}
_NAMES = {ours: ours for ours in _LITGPT}
_COMPUTED = tuple(f"{_LAYER}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb"))
_FIRST = "transformer.h.0.attn.qkv.weight"


def _ours(output: str) -> Layout:
    """Return a form of transformers' layout; ``output`` is the name of the output layer (in files: embed_out)."""
    return Layout(
        "transformers", "transformers", "transformers 5.23.0", {**_NAMES, "embed_out.weight": output},
        (output, "gpt_neox.embed_in.weight", f"{_QKV}.weight".format(n=0)),
        computed=_COMPUTED,
    )  # fmt: skip


def _is_thrice(tensors: Tensors) -> bool:
    """Return whether the fused matrix has as many rows of keys, and of values, as of queries.

    Other networks with litgpt's names have fewer rows of keys and values.
    """
    shape = tensors[_FIRST].shape
    return len(shape) == 2 and shape[0] == 3 * shape[1]


FAMILY = Family(
    "gpt-neox",
    (
        _ours("embed_out.weight"),
        _ours("lm_head.weight"),
        Layout(
            "litgpt", "litgpt", "litgpt 0.5.13", _LITGPT,
            (_FIRST, "transformer.h.0.norm_2.bias", "transformer.h.0.mlp.fc.bias", "lm_head.weight"),
            (Regrouped(_QKV, "heads"),),
            fits=_is_thrice,
        ),
    ),
    heads_in,
)  # fmt: skip
