"""The names of CLIP's layers and of its text tower, in transformers and in OpenAI's code."""

from __future__ import annotations

from ..changes import Fused

__all__ = ["BLOCK", "TEXT", "TEXT_LAYER", "joined"]

BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TEXT_LAYER = "text_model.encoder.layers.{n}"
TEXT = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    **{f"{TEXT_LAYER}.{ours}": f"transformer.resblocks.{{n}}.{theirs}" for ours, theirs in BLOCK.items()},
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}


def joined(ours: str, theirs: str) -> tuple[Fused, Fused]:
    """Return the changes that join queries, keys and values of each layer: one for the matrices, one for the biases.

    ``ours`` is the name of the layers in the family, ``theirs`` their name in OpenAI's code.
    """
    weight, bias = (
        Fused(tuple(f"{ours}.self_attn.{kind}_proj.{role}" for kind in "qkv"), f"{theirs}.attn.in_proj_{role}")
        for role in ("weight", "bias")
    )
    return weight, bias
