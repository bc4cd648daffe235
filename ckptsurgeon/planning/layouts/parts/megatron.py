"""The names and changes of Megatron-core's GPTModel that the layouts of several families of decoders use.

In `linear_qkv`, the rows of one group of heads follow each other: first the queries that share a key, then this key,
then its value; `linear_fc1` has all rows of the gate, then all rows of up. With modules of Transformer Engine, as
Megatron-Bridge and NeMo use them, the norms before the attention and the MLP are part of these two; with Megatron's own
modules (the local spec) they are separate. Distributed checkpoints (`torch_dist`) have the names of Transformer Engine
in both cases, except some norms of networks with experts, and one tensor for all layers, if these are alike.
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/models/gpt/gpt_layer_specs.py,
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/attention.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/models/conversion/param_mapping.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..changes import Fused, Stacked
from ..layout import Change, Tensors

__all__ = [
    "ASIDE",
    "HEAD_NORMS",
    "LEAVES",
    "LIBRARIES",
    "OURS",
    "TESTED",
    "THEIRS",
    "WORDS",
    "attention_fused",
    "decoder_names",
    "gated",
    "mlp_fused",
    "stacked",
]

LIBRARIES = {
    "megatron": "Megatron-core with Transformer Engine, Megatron-Bridge, NeMo",
    "megatron-local": "Megatron-core with its own modules",
    "megatron-dist": "Megatron-core's distributed checkpoints",
    "megatron-local-dist": "Megatron-core's distributed checkpoints of experts, with its own modules",
}
"""{name of a layout: the library that has this layout}."""
TESTED = "megatron-core 0.16.1, megatron-bridge 0.3.1"
OURS, THEIRS = "model.layers.{n}", "decoder.layers.{n}"
WORDS = "embedding.word_embeddings.weight"
ALL = "decoder.layers"
"""The prefix of tensors that contain all layers."""
LEAVES = ("weight", "bias")
_FUSED, _OWN = ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
_NORMS: Mapping[str, tuple[str, str]] = {
    "te": (_FUSED, "mlp.linear_fc1.layer_norm_weight"),
    "local": (_OWN, "pre_mlp_layernorm.weight"),
    "experts": (_FUSED, "pre_mlp_layernorm.weight"),
}
"""The names of a layer's two norms: Transformer Engine, Megatron's own modules, Transformer Engine with experts."""
ASIDE = {"**._extra_state": "the scales of 8-bit training, which Transformer Engine makes anew"}
_OUTER = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head": "output_layer",
}
HEAD_NORMS = {f"self_attn.{kind}_norm.weight": f"self_attention.{kind}_layernorm.weight" for kind in "qk"}
"""The norms of the queries and keys of each head, which some networks have."""
_QKV = tuple(f"{OURS}.self_attn.{kind}_proj" for kind in "qkv")


def decoder_names(norms: str, inner: Mapping[str, str]) -> dict[str, str]:
    """Return {name of a decoder's tensor or module in transformers: Megatron's name}.

    ``norms`` is "te", "local" or "experts". ``inner`` has further names inside a layer, such as the names of the MLP.
    """
    pairs = zip(("input_layernorm.weight", "post_attention_layernorm.weight"), _NORMS[norms], strict=True)
    layer = {"self_attn.o_proj": "self_attention.linear_proj", **inner, **dict(pairs)}
    return {**_OUTER, **{f"{OURS}.{ours}": f"{THEIRS}.{theirs}" for ours, theirs in layer.items()}}


def attention_fused(prefix: str = THEIRS) -> tuple[Fused, ...]:
    """Return the changes that join queries, keys and values; ``prefix`` is the prefix of the new names."""
    heads = ("heads", "keys", "keys")
    return tuple(
        Fused(tuple(f"{one}.{leaf}" for one in _QKV), f"{prefix}.self_attention.linear_qkv.{leaf}", heads, "keys")
        for leaf in LEAVES
    )


def mlp_fused(modules: Sequence[str], into: str) -> tuple[Fused, ...]:
    """Return the changes that join ``modules``, the gate and up of an MLP."""
    return tuple(Fused(tuple(f"{one}.{leaf}" for one in modules), f"{into}.{leaf}") for leaf in LEAVES)


def stacked(names: Mapping[str, str], changes: tuple[Change, ...]) -> tuple[dict[str, str], tuple[Change, ...]]:
    """Return the names and the changes of a distributed checkpoint, in which one tensor has all layers.

    ``names`` are the names of single layers. The names of the tensors that ``changes`` make must begin with ``OURS``.
    """
    last = [one.made for one in changes if one.made.startswith(OURS)]
    made = {one: one.replace(OURS, ALL) for one in last}
    for ours, theirs in names.items():
        if ours.startswith(OURS):
            leaves = ("",) if ours.endswith((".weight", "_bias")) else tuple(f".{leaf}" for leaf in LEAVES)
            made |= {f"{ours}{leaf}": f"{theirs}{leaf}".replace(THEIRS, ALL) for leaf in leaves}
    return dict(_OUTER), (*changes, *(Stacked(ours, theirs) for ours, theirs in made.items()))


def gated(up: str, down: str) -> Callable[[Tensors], bool]:
    """Return a function that tests whether an MLP has gates: the matrix ``up`` then has twice as many rows.

    ``down`` is its second matrix.
    """

    def fits(tensors: Tensors) -> bool:
        if down not in tensors:
            return False
        shapes = tensors[up].shape, tensors[down].shape
        return all(len(shape) > 1 for shape in shapes) and shapes[0][-2] == 2 * shapes[1][-1]

    return fits
