"""The name and sizes of a model, from the fields of its configuration and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors
from ..util.text import count, escape, human_count, listing, number_in

__all__ = ["ModelSummary", "summary_of_config", "summary_of_metadata", "with_weights"]

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
"""Each of these constants lists the possible names of the field for one size; the first field that exists is used."""
WHISPER = ("audio_layer", "text_layer", "audio_state", "audio_head")
"""The sizes in the header of whisper.cpp: layers of encoder and decoder, width and heads."""
TYPES = 3
"""The largest number of dtypes that are named."""
MOST = 2**31
"""Numbers of at least this size are not plausible as sizes of a model, and are left out."""


@dataclass(frozen=True)
class ModelSummary:
    """The class or architecture (``name``) and the sizes of a model; None for sizes that are not known.

    In an encoder-decoder model, ``layers`` is the number of encoder layers. ``experts_per_token`` of the ``experts`` in
    a layer are used for each token. ``parameters`` is the number of elements of all weights, and ``types`` are their
    quantisation methods, then their dtypes, that of the most elements first. ``is_by_keys`` is true if no configuration
    was found: then ``name`` is the family whose names the keys are, '' if none is known.
    """

    name: str
    layers: int | None = None
    decoder_layers: int | None = None
    width: int | None = None
    heads: int | None = None
    key_value_heads: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    parameters: int | None = None
    types: tuple[str, ...] = ()
    is_by_keys: bool = False

    def __str__(self) -> str:
        words = [f"{escape(self.name, 80)}{' (by its keys)' if self.is_by_keys else ''}"] if self.name else []
        if self.layers is not None:
            both = f"{self.layers} + {self.decoder_layers} layers (encoder, decoder)"
            words.append(both if self.decoder_layers is not None else count(self.layers, "layer"))
        words += [f"{self.width} wide"] if self.width is not None else []
        if self.heads is not None:
            shared = self.key_value_heads not in (None, self.heads)
            words.append(
                count(self.heads, "head") + (f" ({self.key_value_heads} of keys and values)" if shared else "")
            )
        if self.experts is not None:
            chosen = f" ({self.experts_per_token} per token)" if self.experts_per_token is not None else ""
            words.append(f"{count(self.experts, 'expert')}{chosen}")
        words += [f"{human_count(self.parameters)} parameters"] if self.parameters else []
        words += [listing(self.types, TYPES, where="")] if self.types else []
        return ", ".join(words)


def summary_of_config(config: Mapping[str, Any]) -> ModelSummary | None:
    """Return the name and sizes of a model from its config.json; None if it names no architecture and no model type.

    A size that is missing at the top level is taken from ``text_config``, as in multimodal models.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else config.get("model_type")
    if not isinstance(name, str) or not name:
        return None
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, Mapping) else [])]
    decoder = _number(parts, DECODER_LAYERS) if config.get("is_encoder_decoder", True) is not False else None
    experts = _number(parts, EXPERTS)
    return ModelSummary(
        name, _number(parts, LAYERS), decoder, _number(parts, WIDTH), _number(parts, HEADS),
        _number(parts, KEY_VALUE_HEADS), experts, None if experts is None else _number(parts, CHOSEN),
    )  # fmt: skip


def summary_of_metadata(format: str, metadata: Mapping[str, str]) -> ModelSummary | None:
    """Return the name and sizes of a model from the metadata of its file; None if this format has no such metadata.

    The formats with such metadata are GGUF, whisper.cpp and CTranslate2. Of the sizes, CTranslate2 states only the
    number of attention heads.
    """
    found = {key: number_in(value) for key, value in metadata.items()}
    if format == "whisper.cpp":
        layers, decoders, width, heads = (found.get(f"n_{name}") for name in WHISPER)
        return ModelSummary("Whisper", layers, decoders, width, heads)
    if format == "ctranslate2" and (name := metadata.get("ctranslate2.spec")):
        fields = (f"{side}num_heads" for side in ("encoder/", "decoder/", ""))
        return ModelSummary(name, heads=next((found[key] for key in fields if found.get(key)), None))
    return _of_gguf(metadata) if format == "gguf" else None


def with_weights(
    model: ModelSummary, tensors: Mapping[str, TensorInfo], ties: Mapping[str, str], codes: QuantisedTensors
) -> ModelSummary:
    """Return the summary of a model with the number of its parameters, and with the types of its weights.

    Tied tensors count once. The number is None if headers do not suffice for it, as with some quantised encodings.
    """
    unknown = any(one.parameters is None for one in codes.tensors)
    types: Counter[str] = Counter()
    for key, info in tensors.items():
        if key not in ties and DTYPES[info.dtype].is_floating and key not in codes.by_key:
            types[info.dtype] += info.parameters
    found = sum(codes.parameters(key, info) for key, info in tensors.items() if key not in ties)
    named = (*(one.replace(", ", " ") for one in codes.methods()), *(name for name, _ in types.most_common()))
    return replace(model, parameters=None if unknown else found, types=tuple(dict.fromkeys(named)))


def _of_gguf(metadata: Mapping[str, str]) -> ModelSummary | None:
    """Return the name and sizes of a model from the metadata of a GGUF; None without ``general.architecture``.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    name = metadata.get("general.architecture")
    if not name:
        return None
    prefix = f"{name}."
    fields = {key.removeprefix(prefix): number_in(value) for key, value in metadata.items() if key.startswith(prefix)}
    experts = _number([fields], ("expert_count",))
    return ModelSummary(
        name, _number([fields], ("block_count",)), None, _number([fields], ("embedding_length",)),
        _number([fields], ("attention.head_count",)), _number([fields], ("attention.head_count_kv",)), experts,
        None if experts is None else _number([fields], ("expert_used_count",)),
    )  # fmt: skip


def _number(parts: list[Any], names: tuple[str, ...]) -> int | None:
    found = (part.get(name) for part in parts for name in names)
    return next((one for one in found if type(one) is int and 0 < one < MOST), None)
