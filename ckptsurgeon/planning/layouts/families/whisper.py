"""Whisper: the layouts of transformers, of OpenAI's package, of CTranslate2 (for faster-whisper) and of SpeechBrain.

https://github.com/openai/whisper. CTranslate2 joins queries, keys and values, and gives the keys a bias of zeros, which
Whisper does not have: ``WhisperLoader`` in
https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/converters/transformers.py and ``fuse_linear`` in
https://github.com/OpenNMT/CTranslate2/blob/v4.8.1/python/ctranslate2/converters/utils.py.

SpeechBrain's wrapper has transformers' names, and stores the mel filters, which are no weights. With ``encoder_only``,
it deletes the decoder:
https://github.com/speechbrain/speechbrain/blob/develop/speechbrain/integrations/huggingface/whisper.py
"""

from __future__ import annotations

from collections.abc import Iterator

from ..changes import Fused, Keyed
from ..layout import Change, Family, Layout, Tensors

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

_LINEAR, _NORM = {"weight": "weight", "bias": "bias"}, {"weight": "gamma", "bias": "beta"}
_ENCODER, _DECODER = "model.encoder.layers.{n}", "model.decoder.layers.{n}"
_SELF = {
    "self_attn.out_proj": "self_attention/linear_1",
    "self_attn_layer_norm": "self_attention/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
    "final_layer_norm": "ffn/layer_norm",
}
_CROSSED = {
    "encoder_attn.q_proj": "attention/linear_0",
    "encoder_attn.out_proj": "attention/linear_2",
    "encoder_attn_layer_norm": "attention/layer_norm",
}
_MODULES = {
    "model.encoder.conv1": "encoder/conv1",
    "model.encoder.conv2": "encoder/conv2",
    **{f"{_ENCODER}.{ours}": f"encoder/layer_{{n}}/{theirs}" for ours, theirs in _SELF.items()},
    "model.encoder.layer_norm": "encoder/layer_norm",
    **{f"{_DECODER}.{ours}": f"decoder/layer_{{n}}/{theirs}" for ours, theirs in (_SELF | _CROSSED).items()},
    "model.decoder.layer_norm": "decoder/layer_norm",
}
_JOINED = {
    "encoder/layer_{n}/self_attention/linear_0": tuple(f"{_ENCODER}.self_attn.{one}_proj" for one in "qkv"),
    "decoder/layer_{n}/self_attention/linear_0": tuple(f"{_DECODER}.self_attn.{one}_proj" for one in "qkv"),
    "decoder/layer_{n}/attention/linear_1": tuple(f"{_DECODER}.encoder_attn.{one}_proj" for one in "kv"),
}
_SINGLE = {
    "model.encoder.embed_positions.weight": "encoder/position_encodings/encodings",
    "model.decoder.embed_positions.weight": "decoder/position_encodings/encodings",
    "model.decoder.embed_tokens.weight": "decoder/embeddings/weight",
    "proj_out.weight": "decoder/projection/weight",
}


def _changes() -> Iterator[Change]:
    """Yield the changes that make CTranslate2's tensors, one for each kind of tensor."""
    for joined, parts in _JOINED.items():
        for leaf in _LINEAR:
            yield Fused(tuple(f"{part}.{leaf}" for part in parts), f"{joined}/{leaf}")
    for module, theirs in _MODULES.items():
        for leaf, other in (_NORM if theirs.endswith("layer_norm") else _LINEAR).items():
            yield Keyed(f"{module}.{leaf}", f"{theirs}/{other}")
    for key, theirs in _SINGLE.items():
        yield Keyed(key, theirs)


_ZEROS = {
    f"{part}.bias": "zeros if CTranslate2 added it, as Whisper's keys have no bias; ckpt does not check the values"
    for parts in _JOINED.values()
    for part in parts
    if part.endswith("k_proj")
}

_ENCODER_ONLY = [ours for ours in _OPENAI if ours.startswith("model.encoder.")]


def _has_no_decoder(tensors: Tensors) -> bool:
    return not any(key.startswith(("model.decoder.", "decoder.")) for key in tensors)


_WITHOUT_DIMS = (
    "whisper.load_model expects dims next to the tensors; "
    "Whisper(ModelDimensions(...)).load_state_dict(torch.load(FILE)) loads this file"
)

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
            tied=_TIED, written=_WITHOUT_DIMS,
        ),
        Layout(
            "ctranslate2", "CTranslate2, faster-whisper", "ctranslate2 4.8.5", _NAMES,
            ("encoder/conv1/weight", "decoder/layer_0/attention/linear_1/weight"),
            tuple(_changes()),
            aside=_ZEROS,
            only_read=True,
        ),
        Layout(
            "speechbrain", "SpeechBrain", "speechbrain 1.1.2", {ours: ours for ours in _OPENAI},
            ("_mel_filters", "model.encoder.conv1.weight", "model.decoder.layers.0.encoder_attn.q_proj.weight"),
            computed=("_mel_filters",), tied=_TIED, only_read=True,
        ),
        Layout(
            "speechbrain", "SpeechBrain (encoder_only)", "speechbrain 1.1.2", {ours: ours for ours in _ENCODER_ONLY},
            ("_mel_filters", "model.encoder.conv1.weight", "model.encoder.layers.0.self_attn.q_proj.weight"),
            computed=("_mel_filters",), fits=_has_no_decoder, only_read=True,
        ),
        *(
            Layout(
                name, library, tested, {ours: _OPENAI[ours] if name == "openai" else ours for ours in _ENCODER_ONLY},
                marks, fits=_has_no_decoder, only_read=True,
            )
            for name, library, tested, marks in (
                (
                    "transformers", "transformers", "transformers 5.23.0",
                    ("model.encoder.conv1.weight", "model.encoder.layers.0.self_attn.q_proj.weight"),
                ),
                (
                    "openai", "openai-whisper", "openai-whisper 20250625",
                    ("encoder.conv1.weight", "encoder.blocks.0.attn.query.weight"),
                ),
            )
        ),
    ),
)  # fmt: skip
