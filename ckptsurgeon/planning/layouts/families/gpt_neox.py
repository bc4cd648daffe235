"""GPT-NeoX and Pythia: the layouts of transformers, litgpt and Megatron-core.

litgpt has all queries first, then all keys, then all values; Megatron-core has the order of transformers.
Megatron-core's layers add the result of the attention before they compute the MLP. So Megatron-core cannot run
networks with `use_parallel_residual`, such as Pythia.
https://github.com/Lightning-AI/litgpt,
https://github.com/NVIDIA/Megatron-LM/blob/core_v0.16.1/megatron/core/transformer/transformer_layer.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..heads import equal_heads
from ..layout import Family, Layout, Tensors, Unfit
from ..parts.megatron_gpt import Decoder, decoder_layouts, with_leaves
from ..row_changes import ThirdsFromHeads

__all__ = ["FAMILY"]

_LAYER = "gpt_neox.layers.{n}"
_QKV = f"{_LAYER}.attention.query_key_value"
_LITGPT = with_leaves(
    {
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
)
_NAMES = {ours: ours for ours in _LITGPT}
_COMPUTED = tuple(f"{_LAYER}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb"))
_BIASES = {_QKV: 0, f"{_LAYER}.attention.dense": 0}
"""The modules whose bias transformers leaves out with ``attention_bias: false``."""
_FIRST = "transformer.h.0.attn.qkv.weight"

_MEGATRON = Decoder(
    {
        "gpt_neox.embed_in": "embedding.word_embeddings",
        "gpt_neox.final_layer_norm": "decoder.final_layernorm",
        "embed_out.weight": "output_layer.weight",
    },
    _LAYER,
    norms=("input_layernorm", "post_attention_layernorm"),
    attention=("attention.query_key_value", "attention.dense"),
    mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)
_SERIAL = (
    "Megatron-core computes the MLP from the sum with the attention: config.json must have use_parallel_residual: false"
)


def _parallel(config: Mapping[str, Any]) -> Unfit | None:
    """Return why Megatron-core cannot compute a network with this configuration; None if it can or may be able to."""
    if config.get("model_type") != "gpt_neox" or config.get("use_parallel_residual", True) is False:
        return None
    return Unfit(
        "config.json has use_parallel_residual (the default), which Megatron-core's layers cannot compute",
        "Rename the tensors with rules if the library can compute that after all.",
    )


def _ours(output: str) -> Layout:
    """Return transformers' layout; ``output`` is the name of the output layer, which is ``embed_out`` in files."""
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
            tuple(ThirdsFromHeads(f"{_QKV}.{leaf}", "heads") for leaf in ("weight", "bias")),
            fits=_is_thrice,
            biases=_BIASES,
        ),
        *decoder_layouts(_MEGATRON, (), has_positions=False, settings=_SERIAL, unfit=_parallel, biases=_BIASES),
    ),
    equal_heads,
)  # fmt: skip
