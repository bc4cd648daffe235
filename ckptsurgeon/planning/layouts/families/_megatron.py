"""The names and changes of Megatron-core's GPTModel that the layouts of several families of decoders use.

`linear_qkv` has, for each head of keys and values, the rows of the queries that use it, then those of its key, then
those of its value; `linear_fc1` has all rows of the gate, then those of up. With modules of Transformer Engine, as
Megatron-Bridge and NeMo use them, the norms before the attention and the MLP are part of these two; with Megatron's own
modules (the local spec) they are separate. Distributed checkpoints (`torch_dist`) have the names of Transformer Engine
in both cases, and one tensor for all layers, if these are alike.
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/models/gpt/gpt_layer_specs.py,
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/attention.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/conversion/param_mapping.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..changes import Fused, Stacked
from ..layout import Change, Tensors

__all__ = ["ASIDE", "LIBRARY", "NORMS", "OURS", "TESTED", "THEIRS", "dense_names", "fused", "gated", "stacked"]

LIBRARY, TESTED = "Megatron-core", "megatron-core 0.16.1, megatron-bridge 0.3.1"
OURS, THEIRS = "model.layers.{n}", "decoder.layers.{n}"
ALL = "decoder.layers"
"""The prefix of tensors that have all layers in one."""
LEAVES = ("weight", "bias")
NORMS: Mapping[str, Mapping[str, str]] = {
    "te": {
        "input": "self_attention.linear_qkv.layer_norm_weight",
        "post_attention": "mlp.linear_fc1.layer_norm_weight",
    },
    "local": {"input": "input_layernorm.weight", "post_attention": "pre_mlp_layernorm.weight"},
}
"""The names of the two norms of a layer, with the modules of Transformer Engine and with Megatron's own."""
ASIDE = {"**._extra_state": "the scales of 8-bit training, which Transformer Engine makes anew"}
_OUTER = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head": "output_layer",
}
_INNER = {
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
    "mlp.down_proj": "mlp.linear_fc2",
}
_QKV = tuple(f"{OURS}.self_attn.{kind}_proj" for kind in "qkv")
_GATE_UP = tuple(f"{OURS}.mlp.{kind}_proj" for kind in ("gate", "up"))


def dense_names(norms: str) -> dict[str, str]:
    """Return Megatron's names of a decoder's tensors, by those of transformers; ``norms`` is a key of ``NORMS``."""
    inner = {**_INNER, **{f"{kind}_layernorm.weight": name for kind, name in NORMS[norms].items()}}
    return {**_OUTER, **{f"{OURS}.{ours}": f"{THEIRS}.{theirs}" for ours, theirs in inner.items()}}


def fused(prefix: str = THEIRS) -> tuple[Fused, ...]:
    """Return the changes that join queries, keys and values, and gate and up; ``prefix`` begins the new names."""
    heads = ("heads", "keys", "keys")
    return (
        *(
            Fused(tuple(f"{one}.{leaf}" for one in _QKV), f"{prefix}.self_attention.linear_qkv.{leaf}", heads, "keys")
            for leaf in LEAVES
        ),
        *(Fused(tuple(f"{one}.{leaf}" for one in _GATE_UP), f"{prefix}.mlp.linear_fc1.{leaf}") for leaf in LEAVES),
    )


def stacked() -> tuple[dict[str, str], tuple[Change, ...]]:
    """Return the names and the changes of a distributed checkpoint, in which one tensor has all layers."""
    joined = fused(OURS)
    made = {one.made: one.made.replace(OURS, ALL) for one in joined}
    for ours, theirs in dense_names("te").items():
        if ours.startswith(OURS):
            leaves = ("",) if ours.endswith(".weight") else tuple(f".{leaf}" for leaf in LEAVES)
            made |= {f"{ours}{leaf}": f"{theirs}{leaf}".replace(THEIRS, ALL) for leaf in leaves}
    return dict(_OUTER), (*joined, *(Stacked(ours, theirs) for ours, theirs in made.items()))


def gated(layer: str) -> Callable[[Tensors], bool]:
    """Return a function that tests whether the MLP of ``layer`` has gates: ``linear_fc1`` has twice as many rows."""
    up, down = (f"{layer}.mlp.linear_fc{number}.weight" for number in (1, 2))

    def fits(tensors: Tensors) -> bool:
        if down not in tensors:
            return False
        shapes = tensors[up].shape, tensors[down].shape
        return all(len(shape) > 1 for shape in shapes) and shapes[0][-2] == 2 * shapes[1][-1]

    return fits
