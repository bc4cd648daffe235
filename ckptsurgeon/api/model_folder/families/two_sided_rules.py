"""Rules for the shapes of encoder-decoder models and of speech models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .fields import Fields, Shape, UnknownError, rules

__all__ = ["BART", "SOUND", "T5", "WHISPER"]

T5 = rules({
    " ".join(f"block.#.layer.#.{one}Attention.{part}.weight" for one in ("Self", "EncDec") for part in "qkv"): (
        lambda c, _: (c["num_heads"] * c["d_kv"], c["d_model"])
    ),
    "block.#.layer.#.SelfAttention.o.weight block.#.layer.#.EncDecAttention.o.weight": (
        lambda c, _: (c["d_model"], c["num_heads"] * c["d_kv"])
    ),
    " ".join(f"block.#.layer.#.DenseReluDense.{one}.weight" for one in ("wi", "wi_0", "wi_1")): (
        lambda c, _: (c["d_ff"], c["d_model"])
    ),
    "block.#.layer.#.DenseReluDense.wo.weight": lambda c, _: (c["d_model"], c["d_ff"]),
    "block.#.layer.#.layer_norm.weight encoder.final_layer_norm.weight decoder.final_layer_norm.weight": (
        lambda c, _: (c["d_model"],)
    ),
    "lm_head.weight": lambda c, _: (None, c["d_model"]),
})  # fmt: skip
_SIDES: Mapping[str, Callable[[Fields, int], Shape]] = {
    "layers.#.self_attn.q_proj.weight layers.#.self_attn.k_proj.weight layers.#.self_attn.v_proj.weight "
    "layers.#.self_attn.out_proj.weight layers.#.encoder_attn.q_proj.weight layers.#.encoder_attn.k_proj.weight "
    "layers.#.encoder_attn.v_proj.weight layers.#.encoder_attn.out_proj.weight": (
        lambda c, _: (c["d_model"], c["d_model"])
    ),
    "layers.#.self_attn_layer_norm.weight layers.#.encoder_attn_layer_norm.weight layers.#.final_layer_norm.weight "
    "encoder.layer_norm.weight decoder.layer_norm.weight encoder.layernorm_embedding.weight "
    "decoder.layernorm_embedding.weight": lambda c, _: (c["d_model"],),
    "encoder.layers.#.fc1.weight": lambda c, _: (c["encoder_ffn_dim"], c["d_model"]),
    "encoder.layers.#.fc2.weight": lambda c, _: (c["d_model"], c["encoder_ffn_dim"]),
    "decoder.layers.#.fc1.weight": lambda c, _: (c["decoder_ffn_dim"], c["d_model"]),
    "decoder.layers.#.fc2.weight": lambda c, _: (c["d_model"], c["decoder_ffn_dim"]),
    "decoder.embed_tokens.weight lm_head.weight proj_out.weight": lambda c, _: (None, c["d_model"]),
}
BART = rules(_SIDES)


WHISPER = rules({
    **_SIDES,
    "encoder.conv1.weight": lambda c, _: (c["d_model"], c["num_mel_bins"], 3),
    "encoder.conv2.weight": lambda c, _: (c["d_model"], c["d_model"], 3),
    "encoder.embed_positions.weight": lambda c, _: (c["max_source_positions"], c["d_model"]),
    "decoder.embed_positions.weight": lambda c, _: (c["max_target_positions"], c["d_model"]),
})  # fmt: skip


def _in_channels(c: Fields, number: int) -> int:
    return c.of("conv_dim", number - 1) if number else 1


def _position_groups(c: Fields) -> int:
    return c["hidden_size"] // c["num_conv_pos_embedding_groups"]


def _without_adapter(c: Fields, name: str) -> int:
    """Return the size in field ``name``; raises UnknownError if an adapter (``add_adapter``) changes it."""
    if c.says("add_adapter"):
        raise UnknownError
    return c[name]


SOUND = rules({
    "conv_layers.#.conv.weight": (
        lambda c, n: (c.of("conv_dim", n), _in_channels(c, n), c.of("conv_kernel", n))
    ),
    "conv_layers.#.layer_norm.weight": lambda c, n: (c.of("conv_dim", n),),
    "feature_projection.layer_norm.weight": lambda c, _: (c.of("conv_dim", -1),),
    "feature_projection.projection.weight": lambda c, _: (c["hidden_size"], c.of("conv_dim", -1)),
    "pos_conv_embed.conv.weight_v pos_conv_embed.conv.parametrizations.weight.original1": (
        lambda c, _: (c["hidden_size"], _position_groups(c), c["num_conv_pos_embeddings"])
    ),
    "pos_conv_embed.conv.weight_g pos_conv_embed.conv.parametrizations.weight.original0": (
        lambda c, _: (1, 1, c["num_conv_pos_embeddings"])
    ),
    "pos_conv_embed.conv.bias encoder.layer_norm.weight masked_spec_embed layers.#.layer_norm.weight "
    "layers.#.final_layer_norm.weight": lambda c, _: (c["hidden_size"],),
    "layers.#.attention.q_proj.weight layers.#.attention.k_proj.weight layers.#.attention.v_proj.weight "
    "layers.#.attention.out_proj.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layers.#.feed_forward.intermediate_dense.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "layers.#.feed_forward.output_dense.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
    "lm_head.weight": lambda c, _: (None, _without_adapter(c, "hidden_size")),
    "quantizer.weight_proj.weight": (
        lambda c, _: (c["num_codevector_groups"] * c["num_codevectors_per_group"], c.of("conv_dim", -1))
    ),
    "project_hid.weight": lambda c, _: (c["proj_codevector_dim"], _without_adapter(c, "hidden_size")),
    "project_q.weight": lambda c, _: (c["proj_codevector_dim"], c["codevector_dim"]),
})  # fmt: skip
