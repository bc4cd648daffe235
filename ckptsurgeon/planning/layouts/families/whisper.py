"""Whisper: transformers' layout, and that of OpenAI's package (https://github.com/openai/whisper)."""

from __future__ import annotations

from ..layout import Family, Layout

__all__ = ["FAMILY"]

_BLOCK = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_CROSS = {
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
}
_OPENAI = {
    "model.encoder.conv1": "encoder.conv1",
    "model.encoder.conv2": "encoder.conv2",
    "model.encoder.embed_positions.weight": "encoder.positional_embedding",
    **{f"model.encoder.layers.{{n}}.{ours}": f"encoder.blocks.{{n}}.{theirs}" for ours, theirs in _BLOCK.items()},
    "model.encoder.layer_norm": "encoder.ln_post",
    "model.decoder.embed_tokens": "decoder.token_embedding",
    "model.decoder.embed_positions.weight": "decoder.positional_embedding",
    **{
        f"model.decoder.layers.{{n}}.{ours}": f"decoder.blocks.{{n}}.{theirs}"
        for ours, theirs in (_BLOCK | _CROSS).items()
    },
    "model.decoder.layer_norm": "decoder.ln",
}
_NAMES = {ours: ours for ours in (*_OPENAI, "proj_out")}
_TIED = {"proj_out": "model.decoder.embed_tokens"}

FAMILY = Family(
    "whisper",
    (
        Layout(
            "transformers", "transformers", "transformers 5.23.0", _NAMES,
            ("model.encoder.conv1.weight", "model.decoder.layers.0.encoder_attn.q_proj.weight"),
        ),
        Layout(
            "transformers", "transformers", "transformers 5.23.0",
            {ours: ours.removeprefix("model.") for ours in _OPENAI},
            ("encoder.conv1.weight", "decoder.layers.0.encoder_attn.q_proj.weight"),
            tied=_TIED,
        ),
        Layout(
            "openai", "openai-whisper", "openai-whisper 20250625", _OPENAI,
            ("encoder.blocks.0.attn.query.weight", "decoder.blocks.0.cross_attn.query.weight"),
            tied=_TIED,
        ),
    ),
)  # fmt: skip
