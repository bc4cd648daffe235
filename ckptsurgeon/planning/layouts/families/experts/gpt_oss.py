"""gpt-oss: the layouts of transformers and of OpenAI's own files and network, with experts in mxfp4 or decoded.

In both, rows of gate and up alternate, and the rotary embedding rotates the two halves of a head. So only the fused
queries, keys and values of OpenAI's layout have to be split. The codes of the experts (mxfp4) are the same bytes in
both. If they are decoded, the matrices are (experts, in, out) in transformers, and (experts, out, in) in OpenAI's
network. https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/model.py, weights.py beside it, and
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gpt_oss/convert_gpt_oss_weights_to_hf.py
"""

from __future__ import annotations

from ...changes import Fused, Transposed
from ...heads import heads_of_decoder
from ...layout import Family, Layout

__all__ = ["FAMILY"]

_LAYER, _BLOCK = "model.layers.{n}", "block.{n}"
_EXPERTS = f"{_LAYER}.mlp.experts"
_QKV = tuple(f"{_LAYER}.self_attn.{kind}_proj" for kind in "qkv")
_SHARED = {
    "model.embed_tokens": "embedding",
    f"{_LAYER}.input_layernorm.weight": f"{_BLOCK}.attn.norm.scale",
    f"{_LAYER}.self_attn.sinks": f"{_BLOCK}.attn.sinks",
    f"{_LAYER}.self_attn.o_proj": f"{_BLOCK}.attn.out",
    f"{_LAYER}.post_attention_layernorm.weight": f"{_BLOCK}.mlp.norm.scale",
    f"{_LAYER}.mlp.router": f"{_BLOCK}.mlp.gate",
    f"{_EXPERTS}.gate_up_proj_bias": f"{_BLOCK}.mlp.mlp1_bias",
    f"{_EXPERTS}.down_proj_bias": f"{_BLOCK}.mlp.mlp2_bias",
    "model.norm.weight": "norm.scale",
    "lm_head": "unembedding",
}
_MATRICES = {
    f"{_EXPERTS}.gate_up_proj": f"{_BLOCK}.mlp.mlp1_weight",
    f"{_EXPERTS}.down_proj": f"{_BLOCK}.mlp.mlp2_weight",
}
_CODES = {f"{ours}_{end}": f"{theirs}.{end}" for ours, theirs in _MATRICES.items() for end in ("blocks", "scales")}
_TURNED = tuple(Transposed(name, dims=(1, 2)) for name in _MATRICES)
_SETTINGS = "config.json must be that of the model on the hub; OpenAI's own, in original/, has other fields"


def _theirs(experts: dict[str, str], changes: tuple[Transposed, ...] = ()) -> Layout:
    first = next(iter(experts.values())).format(n=0)
    return Layout(
        "openai", "OpenAI (openai/gpt-oss)", "gpt-oss 0.0.9", {**_SHARED, **experts},
        ("embedding.weight", "block.0.attn.sinks", "block.0.attn.qkv.weight", first),
        (Fused(_QKV, f"{_BLOCK}.attn.qkv", ("heads", "keys", "keys")), *changes),
    )  # fmt: skip


FAMILY = Family(
    "gpt-oss",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0",
            {name: name for name in (*_SHARED, *_CODES, *_MATRICES, *_QKV)},
            ("model.embed_tokens.weight", "model.layers.0.self_attn.sinks",
             "model.layers.0.mlp.experts.gate_up_proj_bias"),
            computed=("model.rotary_emb",),
            written=_SETTINGS,
        ),
        _theirs(_CODES),
        _theirs(_MATRICES, _TURNED),
    ),
    heads_of_decoder,
    routed=(f"{_LAYER}.mlp.router.weight", f"{_EXPERTS}.down_proj_bias"),
)  # fmt: skip
