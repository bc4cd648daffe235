"""Notes on tensors of well-known model types whose shapes are not those that config.json gives, or are transposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ....util.text import escape, shape_text
from ..config import has_parts
from ..required_parts import pattern_of
from ..shape_checks import BY_LAYER, UNLOADED, DescribedTensor, is_number

__all__ = ["LLAMA_TYPES", "family_shape_notes", "is_of_family"]

Shape: TypeAlias = "tuple[int | None, ...]"
"""A shape; None for a size that no field gives, or that another check compares."""


class _UnknownError(Exception):
    """Raised if a configuration does not have a field that a shape is computed from."""


class _Fields:
    """The fields of a configuration, which notes the names of those that a shape is computed from."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> int:
        """Return a size; ``vision_config.hidden_size`` is one of a nested configuration."""
        value = self._value(name)
        if type(value) is not int or value < 1:
            raise _UnknownError
        self.names[name] = None
        return value

    def get(self, name: str, default: int) -> int:
        """Return a size, or a default if the configuration lacks it, or has null."""
        return default if self._value(name) is None else self[name]

    def of(self, name: str, number: int) -> int:
        """Return an entry of a list of sizes; a negative number counts from its end."""
        value = self._value(name)
        if not isinstance(value, list) or not -len(value) <= number < len(value) or type(value[number]) is not int:
            raise _UnknownError
        self.names[f"{name}, entry {number % len(value)}"] = None
        return int(value[number])

    def says(self, name: str) -> Any:
        """Return the value of a field that turns something on or off."""
        return self._value(name)

    def _value(self, name: str) -> Any:
        found: Any = self._config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


class _Rule(NamedTuple):
    """The shape of a tensor by the fields of a configuration.

    ``pattern`` ends the names, with # for numbers. The function gets the fields and the last number in the name.
    """

    pattern: str
    shape: Callable[[_Fields, int], Shape]


def _rules(rules: Mapping[str, Callable[[_Fields, int], Shape]], *, has_biases: bool = True) -> tuple[_Rule, ...]:
    """Return a rule for each of the names, which are separated by spaces.

    If the module ``has_biases``, there is also one for the bias of each weight, of as many values as that has rows.
    """
    made = [_Rule(pattern, shape) for patterns, shape in rules.items() for pattern in patterns.split()]
    known = {one.pattern for one in made}
    biases = [(one, f"{one.pattern.removesuffix('weight')}bias") for one in made if one.pattern.endswith(".weight")]
    made += [_Rule(name, _first(one.shape)) for one, name in biases if has_biases and name not in known]
    return tuple(made)


def _first(shape: Callable[[_Fields, int], Shape]) -> Callable[[_Fields, int], Shape]:
    return lambda c, number: shape(c, number)[:1]


# Language models with decoders alone.


def _heads(c: _Fields) -> tuple[int, int]:
    """Return the sizes of all queries and of all keys together; without a number of heads of keys, both are equal."""
    heads = c["num_attention_heads"]
    size = c.get("head_dim", c["hidden_size"] // heads)
    return heads * size, c.get("num_key_value_heads", heads) * size


_LLAMA = _rules({
    "norm.weight layers.#.input_layernorm.weight layers.#.post_attention_layernorm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "lm_head.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.self_attn.q_proj.weight layers.#.self_attn.k_proj.weight layers.#.self_attn.v_proj.weight "
    "layers.#.mlp.gate_proj.weight layers.#.mlp.up_proj.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.self_attn.o_proj.weight layers.#.mlp.down_proj.weight": lambda c, _: (c["hidden_size"], None),
})  # fmt: skip
_PHI3 = _rules({
    "layers.#.self_attn.qkv_proj.weight": lambda c, _: (_heads(c)[0] + 2 * _heads(c)[1], c["hidden_size"]),
    "layers.#.self_attn.o_proj.weight": lambda c, _: (c["hidden_size"], _heads(c)[0]),
    "layers.#.mlp.gate_up_proj.weight": lambda c, _: (2 * c["intermediate_size"], c["hidden_size"]),
})  # fmt: skip
_GPT2 = _rules({  # Conv1D stores (in, out)
    "ln_f.weight ln_f.bias h.#.ln_1.weight h.#.ln_1.bias h.#.ln_2.weight h.#.ln_2.bias h.#.attn.c_proj.bias": (
        lambda c, _: (c["n_embd"],)
    ),
    "h.#.attn.c_attn.weight": lambda c, _: (c["n_embd"], 3 * c["n_embd"]),
    "h.#.attn.c_attn.bias": lambda c, _: (3 * c["n_embd"],),
    "h.#.attn.c_proj.weight": lambda c, _: (c["n_embd"], c["n_embd"]),
    "h.#.mlp.c_fc.weight": lambda c, _: (c["n_embd"], c.get("n_inner", 4 * c["n_embd"])),
    "h.#.mlp.c_fc.bias": lambda c, _: (c.get("n_inner", 4 * c["n_embd"]),),
    "h.#.mlp.c_proj.weight": lambda c, _: (c.get("n_inner", 4 * c["n_embd"]), c["n_embd"]),
    "lm_head.weight wte.weight": lambda c, _: (None, c["n_embd"]),
}, has_biases=False)  # fmt: skip
_OPT = _rules({
    "layers.#.self_attn.q_proj.weight layers.#.self_attn.k_proj.weight layers.#.self_attn.v_proj.weight "
    "layers.#.self_attn.out_proj.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layers.#.self_attn_layer_norm.weight layers.#.final_layer_norm.weight decoder.final_layer_norm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "layers.#.fc1.weight": lambda c, _: (c["ffn_dim"], c["hidden_size"]),
    "layers.#.fc2.weight": lambda c, _: (c["hidden_size"], c["ffn_dim"]),
})  # fmt: skip
_NEOX = _rules({
    "final_layer_norm.weight layers.#.input_layernorm.weight layers.#.post_attention_layernorm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "embed_in.weight embed_out.weight lm_head.weight": lambda c, _: (None, c["hidden_size"]),
    "layers.#.attention.query_key_value.weight": lambda c, _: (3 * c["hidden_size"], c["hidden_size"]),
    "layers.#.attention.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layers.#.mlp.dense_h_to_4h.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "layers.#.mlp.dense_4h_to_h.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
})  # fmt: skip
_FALCON = _rules({
    "transformer.ln_f.weight": lambda c, _: (c["hidden_size"],),
    "word_embeddings.weight lm_head.weight": lambda c, _: (None, c["hidden_size"]),
})  # fmt: skip

# Encoders of texts.

_BERT = _rules({
    "layer.#.attention.self.query.weight layer.#.attention.self.key.weight layer.#.attention.self.value.weight "
    "layer.#.attention.output.dense.weight pooler.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "layer.#.attention.output.LayerNorm.weight layer.#.output.LayerNorm.weight": lambda c, _: (c["hidden_size"],),
    "layer.#.intermediate.dense.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "layer.#.output.dense.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
    "cls.predictions.transform.dense.weight lm_head.dense.weight": lambda c, _: (c["hidden_size"], c["hidden_size"]),
    "cls.predictions.transform.LayerNorm.weight lm_head.layer_norm.weight": lambda c, _: (c["hidden_size"],),
    "cls.predictions.decoder.weight lm_head.decoder.weight": lambda c, _: (c["vocab_size"], c["hidden_size"]),
    "cls.predictions.bias lm_head.bias": lambda c, _: (c["vocab_size"],),
})  # fmt: skip
_EMBEDDED = _rules({"embeddings.LayerNorm.weight": lambda c, _: (c["hidden_size"],)})
_ELECTRA = _rules({
    "embeddings.LayerNorm.weight generator_predictions.LayerNorm.weight": lambda c, _: (c["embedding_size"],),
    "generator_predictions.dense.weight": lambda c, _: (c["embedding_size"], c["hidden_size"]),
})  # fmt: skip

_ALBERT = _rules({
    "embeddings.LayerNorm.weight predictions.LayerNorm.weight": lambda c, _: (c["embedding_size"],),
    "embedding_hidden_mapping_in.weight": lambda c, _: (c["hidden_size"], c["embedding_size"]),
    " ".join(f"albert_layers.#.attention.{one}.weight" for one in ("query", "key", "value", "dense")): (
        lambda c, _: (c["hidden_size"], c["hidden_size"])
    ),
    "albert_layers.#.attention.LayerNorm.weight albert_layers.#.full_layer_layer_norm.weight": (
        lambda c, _: (c["hidden_size"],)
    ),
    "albert_layers.#.ffn.weight": lambda c, _: (c["intermediate_size"], c["hidden_size"]),
    "albert_layers.#.ffn_output.weight": lambda c, _: (c["hidden_size"], c["intermediate_size"]),
    "predictions.dense.weight": lambda c, _: (c["embedding_size"], c["hidden_size"]),
    "predictions.decoder.weight": lambda c, _: (c["vocab_size"], c["embedding_size"]),
})  # fmt: skip
_DISTILBERT = _rules({
    "embeddings.LayerNorm.weight vocab_layer_norm.weight layer.#.sa_layer_norm.weight "
    "layer.#.output_layer_norm.weight": lambda c, _: (c["dim"],),
    "layer.#.attention.q_lin.weight layer.#.attention.k_lin.weight layer.#.attention.v_lin.weight "
    "layer.#.attention.out_lin.weight vocab_transform.weight": lambda c, _: (c["dim"], c["dim"]),
    "layer.#.ffn.lin1.weight": lambda c, _: (c["hidden_dim"], c["dim"]),
    "layer.#.ffn.lin2.weight": lambda c, _: (c["dim"], c["hidden_dim"]),
    "vocab_projector.weight": lambda c, _: (c["vocab_size"], c["dim"]),
})  # fmt: skip

# Encoders with decoders.

_T5 = _rules({
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
_SIDES: Mapping[str, Callable[[_Fields, int], Shape]] = {
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
_BART = _rules(_SIDES)

# Models of speech.

_WHISPER = _rules({
    **_SIDES,
    "encoder.conv1.weight": lambda c, _: (c["d_model"], c["num_mel_bins"], 3),
    "encoder.conv2.weight": lambda c, _: (c["d_model"], c["d_model"], 3),
    "encoder.embed_positions.weight": lambda c, _: (c["max_source_positions"], c["d_model"]),
    "decoder.embed_positions.weight": lambda c, _: (c["max_target_positions"], c["d_model"]),
})  # fmt: skip


def _in_channels(c: _Fields, number: int) -> int:
    return c.of("conv_dim", number - 1) if number else 1


def _position_groups(c: _Fields) -> int:
    return c["hidden_size"] // c["num_conv_pos_embedding_groups"]


def _without_adapter(c: _Fields, name: str) -> int:
    """Return a size that convolutions behind the encoder (``add_adapter``) would change."""
    if c.says("add_adapter"):
        raise _UnknownError
    return c[name]


_SOUND = _rules({
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

# Models of images, some of them with texts.


def _patches(c: _Fields, above: str = "") -> int:
    return (c[f"{above}image_size"] // c[f"{above}patch_size"]) ** 2


def _patch(c: _Fields, above: str = "") -> Shape:
    size = c[f"{above}patch_size"]
    return c[f"{above}hidden_size"], c.get(f"{above}num_channels", 3), size, size


def _images(prefix: str, above: str, more: int) -> dict[str, Callable[[_Fields, int], Shape]]:
    """Return the rules of an encoder of images named ``prefix``…; ``more`` positions are those of no patch."""
    positions = f"{prefix}embeddings.position_embedding.weight"
    return {
        f"{prefix}embeddings.patch_embedding.weight": lambda c, _: _patch(c, above),
        f"{prefix}embeddings.class_embedding": lambda c, _: (c[f"{above}hidden_size"],),
        positions: lambda c, _: (_patches(c, above) + more, c[f"{above}hidden_size"]),
        f"{prefix}post_layernorm.weight {prefix}pre_layrnorm.weight": lambda c, _: (c[f"{above}hidden_size"],),
        **_layers(prefix, above),
    }


def _layers(prefix: str, above: str) -> dict[str, Callable[[_Fields, int], Shape]]:
    """Return the rules of the layers of an encoder of images or of texts."""
    layer = f"{prefix}encoder.layers.#."
    projections = " ".join(f"{layer}self_attn.{one}_proj.weight" for one in ("q", "k", "v", "out"))
    return {
        projections: lambda c, _: (c[f"{above}hidden_size"], c[f"{above}hidden_size"]),
        f"{layer}layer_norm1.weight {layer}layer_norm2.weight": lambda c, _: (c[f"{above}hidden_size"],),
        f"{prefix}encoder.layers.#.mlp.fc1.weight": (
            lambda c, _: (c[f"{above}intermediate_size"], c[f"{above}hidden_size"])
        ),
        f"{prefix}encoder.layers.#.mlp.fc2.weight": (
            lambda c, _: (c[f"{above}hidden_size"], c[f"{above}intermediate_size"])
        ),
    }


_VISION, _TEXT = "vision_config.", "text_config."
_TEXTS: Mapping[str, Callable[[_Fields, int], Shape]] = {
    "text_model.embeddings.token_embedding.weight": (lambda c, _: (c[f"{_TEXT}vocab_size"], c[f"{_TEXT}hidden_size"])),
    "text_model.embeddings.position_embedding.weight": (
        lambda c, _: (c[f"{_TEXT}max_position_embeddings"], c[f"{_TEXT}hidden_size"])
    ),
    "text_model.final_layer_norm.weight": lambda c, _: (c[f"{_TEXT}hidden_size"],),
    **_layers("text_model.", _TEXT),
}
_CLIP = _rules({
    **_images("vision_model.", _VISION, 1),
    **_TEXTS,
    "visual_projection.weight": lambda c, _: (c["projection_dim"], c[f"{_VISION}hidden_size"]),
    "text_projection.weight": lambda c, _: (c["projection_dim"], c[f"{_TEXT}hidden_size"]),
})  # fmt: skip
_SIGLIP = _rules({**_images("vision_model.", _VISION, 0), **_TEXTS})
_VIT = _rules({
    "embeddings.patch_embeddings.projection.weight": lambda c, _: _patch(c),
    "embeddings.cls_token": lambda c, _: (1, 1, c["hidden_size"]),
    "embeddings.position_embeddings": lambda c, _: (1, _patches(c) + 1, c["hidden_size"]),
})  # fmt: skip


def _feature_layers(c: _Fields) -> int:
    """Return the number of layers of the image encoder whose outputs the projector of LLaVA gets."""
    found = c.says("vision_feature_layer")
    return len(found) if isinstance(found, list) else 1


_LLAVA = _rules({
    "multi_modal_projector.linear_1.weight": (
        lambda c, _: (c[f"{_TEXT}hidden_size"], c[f"{_VISION}hidden_size"] * _feature_layers(c))
    ),
    "multi_modal_projector.linear_2.weight": lambda c, _: (c[f"{_TEXT}hidden_size"], c[f"{_TEXT}hidden_size"]),
    "multi_modal_projector.linear_1.bias multi_modal_projector.linear_2.bias": lambda c, _: (c[f"{_TEXT}hidden_size"],),
    "lm_head.weight": lambda c, _: (None, c[f"{_TEXT}hidden_size"]),
    "layers.#.mlp.gate_proj.weight layers.#.mlp.up_proj.weight": lambda c, _: (None, c[f"{_TEXT}hidden_size"]),
    "layers.#.mlp.down_proj.weight": lambda c, _: (c[f"{_TEXT}hidden_size"], None),
    **_layers("", _VISION),
})  # fmt: skip

LLAMA_TYPES = (
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe",
)  # fmt: skip
_FAMILIES: Mapping[str, tuple[_Rule, ...]] = {
    **dict.fromkeys(LLAMA_TYPES, _LLAMA),
    "phi3": (*(one for one in _LLAMA if "proj" not in one.pattern), *_PHI3),
    "gpt2": _GPT2,
    **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), (*_EMBEDDED, *_BERT)),
    "electra": (*_BERT, *_ELECTRA),
    "opt": _OPT,
    "gpt_neox": _NEOX,
    "falcon": _FALCON,
    "albert": _ALBERT,
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("mt5", "t5", "umt5"), _T5),
    **dict.fromkeys(("bart", "marian", "mbart", "pegasus"), _BART),
    "whisper": _WHISPER,
    **dict.fromkeys(("hubert", "wav2vec2", "wavlm"), _SOUND),
    "clip": _CLIP,
    "siglip": _SIGLIP,
    "clip_vision_model": _rules(_images("vision_model.", "", 1)),
    "siglip_vision_model": _rules(_images("vision_model.", "", 0)),
    "vit": _VIT,
    "llava": _LLAVA,
}
_BY_LAYER = tuple(one for one in BY_LAYER if one != "multi_query")  # Falcon's, whose layers have no rule
_WITH_PARTS = ("clip", "llava", "siglip")


def is_of_family(kind: str) -> bool:
    """Return whether the shapes of a model type are known."""
    return kind in _FAMILIES


def family_shape_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on the first tensor whose shape is not the one that the model type has with this configuration.

    There is none if the configuration names code of its own (``auto_map``), or sizes for each layer. Quantised tensors
    are not compared, and no tensor inside a numbered module that the rules do not name.
    """
    rules = _FAMILIES.get(str(config.get("model_type")), ())
    if has_parts(config) and config.get("model_type") not in _WITH_PARTS:
        return
    if "embedding_size" in config and config.get("model_type") in LLAMA_TYPES:  # a field of code of its own
        return
    if not rules or config.get("auto_map") or any(name in config for name in _BY_LAYER):
        return
    by_end: dict[str, list[_Rule]] = {}
    for rule in rules:
        by_end.setdefault(_end(rule.pattern), []).append(rule)
    for one in tensors:
        for rule in by_end.get(_end(one.key), ()) if not one.is_quantised else ():
            found = pattern_of(one.key)
            if not f".{found}".endswith(f".{rule.pattern}") or "#" in found.removesuffix(rule.pattern):
                continue
            note = _other_shape(one, rule, config) if is_number(one) else ""
            if note:
                yield note
                return


def _end(key: str) -> str:
    """Return the last part of a name, and the one before it if that is no number."""
    return ".".join(part for part in key.split(".")[-2:] if not part.isdecimal() and part != "#")


def _other_shape(one: DescribedTensor, rule: _Rule, config: Mapping[str, Any]) -> str:
    numbers = [int(part) for part in one.key.split(".") if part.isdecimal() and len(part) < 10]
    fields = _Fields(config)
    try:
        wanted = rule.shape(fields, numbers[-1] if numbers else 0)
    except _UnknownError:
        return ""
    if _fits(wanted, one.shape):
        return ""
    back = len(wanted) == 2 and _fits(wanted, one.shape[::-1])
    size = f"({', '.join('any' if size is None else str(size) for size in wanted)})"
    is_ = f"{escape(one.key)} is {shape_text(one.shape)}{', transposed' if back else ''}"
    return f"config.json says {size} ({', '.join(fields.names)}), but {is_}: {UNLOADED}"


def _fits(wanted: Shape, shape: Sequence[int]) -> bool:
    return len(wanted) == len(shape) and all(a in (None, b) for a, b in zip(wanted, shape, strict=True))
